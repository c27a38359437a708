"""What the classes of well-known libraries mean, by name: nothing of them is imported.

The most specific class in an exception's MRO that says something decides. A row may have a *reader*, which looks
at what the exception carries (a status, a code) or wraps, and is asked before the kind of the row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from celery_durable import classify_databases as databases
from celery_durable import classify_readers as readers
from celery_durable.classify_readers import PERMANENT, TIMEOUT, TRANSIENT, UNCLASSIFIED, Finding, look
from celery_durable.failures import qualified_name

if TYPE_CHECKING:
    from collections.abc import Callable

    Reader = Callable[[BaseException], Finding | None]

#: How many wrappers deep an exception is looked into.
MAX_DEPTH = 8


class Row(NamedTuple):
    """One class: what it is, its kind (None where the class alone says nothing), what it carries."""

    what: str
    kind: str | None
    reader: Reader | None = None
    wraps: bool = False


def find(exc: BaseException, depth: int = 0) -> Finding | None:
    """Say what is known of an exception: its HTTP status, else the first row of its MRO that says something."""
    found = readers.http(exc)
    for cls in type(exc).__mro__ if found is None else ():
        name = qualified_name(cls)
        row = TABLE.get(name)
        if row is not None:
            found = (row.reader(exc) if row.reader else None) or (_inside(exc, name, depth) if row.wraps else None)
            if found is None and row.kind is not None:
                found = Finding(row.kind, f"built in: {name} is {row.what}")
        if found is not None:
            break
    return found


def _inside(exc: BaseException, name: str, depth: int) -> Finding | None:
    """Judge a wrapper by what it wraps."""
    kwargs = look(exc, "kwargs")  # botocore
    error = kwargs.get("error") if isinstance(kwargs, dict) else None
    places = (look(exc, "orig"), exc.__cause__, look(exc, "reason"), error, *exc.args[:3])
    inner = next((place for place in places if isinstance(place, BaseException) and place is not exc), None)
    found = find(inner, depth + 1) if inner is not None and depth < MAX_DEPTH else None
    return None if found is None else found._replace(why=f"{found.why}, inside {name}")


def _rows(module: str, names: str, row: Row) -> dict[str, Row]:
    prefix = f"{module}." if module else ""
    return dict.fromkeys([prefix + name for name in names.split()], row)


CONNECTION = Row("a connection error", TRANSIENT)
WRAPPED = Row("a connection error", TRANSIENT, wraps=True)
LATE = Row("a timeout", TRANSIENT)
BUSY = Row("a shortage that passes", TRANSIENT)
CONFLICT = Row("a conflict with another writer", TRANSIENT)
WRONG = Row("a programming error", PERMANENT)
INVALID = Row("a validation error", PERMANENT)
BAD_DATA = Row("an error in the data", PERMANENT)
SETUP = Row("an error of configuration", PERMANENT)
REFUSED = Row("a refusal", PERMANENT)
VAGUE = Row("of unknown cause", UNCLASSIFIED)
TIME_LIMIT = Row("Celery's time limit", TIMEOUT)


def _database(module: str, reader: Reader | None = None, *, wraps: bool = False) -> dict[str, Row]:
    """Rows of a DB-API driver, or of a layer that names its exceptions alike."""
    kinds = {
        "OperationalError": ("an operational error", TRANSIENT), "InterfaceError": ("an interface error", TRANSIENT),
        "IntegrityError": ("an integrity error", PERMANENT), "ProgrammingError": ("a programming error", PERMANENT),
        "DataError": ("a data error", PERMANENT), "NotSupportedError": ("not supported", PERMANENT),
        "InternalError": ("an internal error", None), "DatabaseError": ("a database error", None),
        "Error": ("a database error", None),
    }  # fmt: skip
    return {f"{module}.{name}": Row(what, kind, reader, wraps) for name, (what, kind) in kinds.items()}


# Python's own. The permanent ones come out the same however often the body runs with the same arguments: programming
# errors, and ValueError and LookupError, Python's errors of validation. RuntimeError and EOFError are left out:
# libraries raise them for anything, so they stay unclassified.
_PYTHON = (
    _rows("", "ConnectionError", Row("a connection error", TRANSIENT, readers.os_error))
    | _rows("celery_durable.errors", "LedgerUnavailable", CONNECTION)
    | _rows("celery_durable.errors", "WaitTimeout", Row("a wait that came to its end", TIMEOUT))
    | _rows("", "TimeoutError", LATE)
    | _rows("", "BlockingIOError InterruptedError", BUSY)
    | _rows(
        "",
        "FileNotFoundError FileExistsError IsADirectoryError NotADirectoryError PermissionError ProcessLookupError "
        "ChildProcessError",
        Row("a wrong path, right or process", PERMANENT, readers.os_error),
    )
    | _rows("", "OSError", Row("an error of the operating system", None, readers.os_error))
    | _rows(
        "",
        "TypeError AttributeError NameError ImportError SyntaxError AssertionError NotImplementedError RecursionError "
        "StopIteration StopAsyncIteration",
        WRONG,
    )
    | _rows("", "ValueError", INVALID)
    | _rows("", "LookupError ArithmeticError", BAD_DATA)
    | _rows("", "struct.error zlib.error _csv.Error re.error _pickle.PickleError", BAD_DATA)
    | _rows("", "_lzma.LZMAError zipfile.BadZipFile tarfile.ReadError configparser.Error", BAD_DATA)
    | _rows("", "asyncio.exceptions.TimeoutError concurrent.futures._base.TimeoutError", LATE)  # Python 3.10
    | _rows("asyncio.exceptions", "IncompleteReadError", CONNECTION)
    | _rows("", "socket.gaierror socket.herror", Row("a host name that was not resolved", TRANSIENT, readers.resolver))
    | _rows("ssl", "SSLError", Row("a TLS error", TRANSIENT, readers.tls))
    | _rows("subprocess", "TimeoutExpired", LATE)
    | _rows("subprocess", "CalledProcessError", Row("a command that failed", None, readers.exit_code))
    | _rows("http.client", "RemoteDisconnected IncompleteRead BadStatusLine NotConnected", CONNECTION)
    | _rows("http.client", "InvalidURL ImproperConnectionState", WRONG)
    | _rows("urllib.error", "ContentTooShortError", CONNECTION)
    | _rows("urllib.error", "HTTPError", REFUSED)  # with a status below 400, else http() has spoken
    # "unknown url type" and "no host given" are plain text; what else happened is the reason
    | _rows("urllib.error", "URLError", Row("a wrong URL", PERMANENT, wraps=True))
    | _rows("smtplib", "SMTPServerDisconnected", CONNECTION)
    | _rows("smtplib", "SMTPNotSupportedError", REFUSED)
    | _rows("smtplib", "SMTPConnectError", Row("a connection error", TRANSIENT, readers.smtp))
    | _rows("smtplib", "SMTPResponseException SMTPRecipientsRefused", Row("an SMTP reply", None, readers.smtp))
    | _rows("ftplib", "error_temp error_perm error_reply", Row("an FTP reply", None, readers.ftp))
    | _rows("imaplib", "IMAP4.abort", CONNECTION)
)

_DATABASES = (
    _database("psycopg", databases.sqlstate)
    | _database("psycopg2", databases.sqlstate)
    | _database("pymysql.err", databases.mysql)
    | _database("MySQLdb._exceptions", databases.mysql)
    | _database("sqlalchemy.exc", databases.disconnected, wraps=True)
    | _database("django.db.utils", wraps=True)
    | _database("sqlite3")
    | _rows("sqlite3", "OperationalError", Row("an operational error", None, databases.sqlite))
    | _rows("sqlite3", "InterfaceError DatabaseError", BAD_DATA)  # a wrong binding, a damaged file
    | _rows("sqlalchemy.exc", "TimeoutError", BUSY)  # no connection of the pool became free
    | _rows("sqlalchemy.exc", "DBAPIError", Row("a database error", None, databases.disconnected, wraps=True))
    | _rows("sqlalchemy.exc", "DisconnectionError", CONNECTION)
    | _rows("sqlalchemy.exc", "StatementError", Row("a wrong statement", PERMANENT, wraps=True))
    | _rows("sqlalchemy.exc", "ArgumentError CompileError InvalidRequestError CircularDependencyError", WRONG)
    | _rows("sqlalchemy.exc", "PendingRollbackError ResourceClosedError", VAGUE)  # what follows another error
    | _rows("sqlalchemy.orm.exc", "StaleDataError", CONFLICT)
    | _rows("sqlalchemy.orm.exc", "DetachedInstanceError", WRONG)
)

_BROKERS = (
    _rows("redis.exceptions", "ConnectionError ClusterDownError MasterDownError MaxConnectionsError", CONNECTION)
    | _rows("redis.exceptions", "TimeoutError", LATE)
    | _rows("redis.exceptions", "BusyLoadingError ReadOnlyError TryAgainError OutOfMemoryError LockError", BUSY)
    | _rows("redis.exceptions", "WatchError LockNotOwnedError", CONFLICT)
    | _rows("redis.exceptions", "AuthenticationError AuthorizationError", SETUP)
    | _rows("redis.exceptions", "ResponseError", Row("an error reply", PERMANENT, databases.redis))
    | _rows("redis.exceptions", "NoScriptError", VAGUE)  # a restarted server has forgotten it
    | _rows("redis.exceptions", "DataError PubSubError CrossSlotTransactionError", WRONG)
    | _rows("redis.exceptions", "RedisClusterException SlotNotCoveredError", CONNECTION)
    | _rows("kombu.exceptions", "OperationalError", Row("an operational error", TRANSIENT, wraps=True))
    | _rows("kombu.exceptions", "LimitExceeded", BUSY)
    | _rows("kombu.exceptions", "SerializationError NotBoundError MessageStateError SerializerNotInstalled", WRONG)
    | _rows("kombu.exceptions", "VersionMismatch", SETUP)
    | _rows("amqp.exceptions", "ConnectionError RecoverableChannelError", CONNECTION)
    | _rows("amqp.exceptions", "IrrecoverableChannelError InvalidPath NotAllowed AMQPNotImplementedError", REFUSED)
    | _rows("amqp.exceptions", "ContentTooLarge", REFUSED)
    | _rows("amqp.exceptions", "MessageNacked", BUSY)
    | _rows("billiard.exceptions", "SoftTimeLimitExceeded TimeLimitExceeded", TIME_LIMIT)
    | _rows("celery.exceptions", "TimeoutError", LATE)
    | _rows("celery.exceptions", "BackendError", CONNECTION)
    | _rows("celery.exceptions", "ImproperlyConfigured SecurityError NotRegistered QueueNotFound", SETUP)
    | _rows("celery.exceptions", "MaxRetriesExceededError", Row("the end of its retries", PERMANENT))
    | _rows("celery_durable.errors", "LedgerUnavailable", CONNECTION)
    | _rows("celery_durable.errors", "SettingsError SubmitError LedgerSchemaError", WRONG)
)

_HTTP = (
    _rows("requests.exceptions", "ConnectionError", WRAPPED)
    | _rows("requests.exceptions", "RetryError", Row("the end of its retries", TRANSIENT, wraps=True))
    | _rows("requests.exceptions", "Timeout ConnectTimeout", LATE)
    | _rows("requests.exceptions", "ChunkedEncodingError", CONNECTION)
    | _rows("requests.exceptions", "TooManyRedirects HTTPError", REFUSED)
    | _rows("requests.exceptions", "URLRequired UnrewindableBodyError InvalidJSONError", WRONG)
    | _rows("requests.exceptions", "JSONDecodeError", BAD_DATA)
    | _rows("httpx", "NetworkError ProxyError RemoteProtocolError", WRAPPED)
    | _rows("httpx", "TimeoutException", LATE)
    | _rows("httpx", "TooManyRedirects HTTPStatusError", REFUSED)
    | _rows("httpx", "UnsupportedProtocol InvalidURL LocalProtocolError CookieConflict StreamError", WRONG)
    | _rows("httpcore", "NetworkError ProxyError RemoteProtocolError ConnectionNotAvailable", WRAPPED)
    | _rows("httpcore", "TimeoutException", LATE)
    | _rows("httpcore", "UnsupportedProtocol LocalProtocolError", WRONG)
    | _rows("urllib3.exceptions", "MaxRetryError ProtocolError SSLError ProxyError NewConnectionError", WRAPPED)
    | _rows("urllib3.exceptions", "TimeoutError", LATE)
    | _rows("urllib3.exceptions", "IncompleteRead InvalidChunkLength ResponseError", CONNECTION)
    | _rows("urllib3.exceptions", "PoolError", BUSY)
    | _rows("urllib3.exceptions", "LocationValueError UnrewindableBodyError", WRONG)
    | _rows("aiohttp.client_exceptions", "ClientConnectorDNSError ClientConnectionError ClientPayloadError", CONNECTION)
    | _rows("aiohttp.client_exceptions", "ClientResponseError", REFUSED)
    | _rows("aiohttp.client_exceptions", "InvalidURL NonHttpUrlClientError", WRONG)
    | _rows("botocore.exceptions", "ClientError", Row("an error reply", None, readers.aws))
    | _rows("botocore.exceptions", "ConnectionError HTTPClientError SSLError", WRAPPED)
    | _rows("botocore.exceptions", "IncompleteReadError ChecksumError CapacityNotAvailableError", CONNECTION)
    | _rows("botocore.exceptions", "MetadataRetrievalError CredentialRetrievalError WaiterError", BUSY)
    | _rows(
        "botocore.exceptions",
        "NoCredentialsError PartialCredentialsError NoRegionError ProfileNotFound ConfigParseError ConfigNotFound "
        "InvalidConfigError BaseEndpointResolverError EndpointProviderError",
        SETUP,
    )
    | _rows("botocore.exceptions", "ParamValidationError ValidationError MissingParametersError", INVALID)
    | _rows("botocore.exceptions", "UnknownServiceError OperationNotPageableError UnknownClientMethodError", WRONG)
    | _rows("tenacity", "RetryError", Row("the end of its retries", None, wraps=True))
)

_FRAMEWORKS = (
    _rows("django.core.exceptions", "ValidationError SuspiciousOperation BadRequest", INVALID)
    | _rows("django.core.exceptions", "ImproperlyConfigured PermissionDenied", SETUP)
    | _rows("django.core.exceptions", "FieldError FieldDoesNotExist MultipleObjectsReturned", WRONG)
    | _rows("", "rest_framework.exceptions.ValidationError jsonschema.exceptions.ValidationError", INVALID)
    | _rows("", "pydantic_core._pydantic_core.ValidationError marshmallow.exceptions.ValidationError", INVALID)
)

TABLE: dict[str, Row] = _PYTHON | _DATABASES | _BROKERS | _HTTP | _FRAMEWORKS
