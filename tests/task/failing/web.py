"""HTTP through urllib, requests, httpx, aiohttp and botocore; TLS and e-mail."""
# ruff: noqa: S310, S321 - nothing leaves the loopback

from __future__ import annotations

import asyncio
import ftplib
import http.client
import smtplib
import socket
import ssl
import urllib.request
from email.utils import formatdate
from typing import Any

import aiohttp
import botocore.config
import botocore.session
import httpx
import requests
import tenacity
import urllib3

from .case import PERMANENT, TRANSIENT, UNCLASSIFIED, Case, collector
from .world import SERVER_TIME

CASES: list[Case] = []
case = collector(CASES)

NOWHERE = "no-such-host.invalid"


def _by_status(status: int, kind: str) -> None:
    """One status through three libraries."""

    @case("urllib.error.HTTPError", kind, f"HTTP {status}")
    def urllib_status(w: Any) -> None:
        urllib.request.urlopen(f"{w.url}/status/{status}")

    @case("requests.exceptions.HTTPError", kind, f"HTTP {status}")
    def requests_status(w: Any) -> None:
        requests.get(f"{w.url}/status/{status}", timeout=5).raise_for_status()

    @case("httpx.HTTPStatusError", kind, f"HTTP {status}")
    def httpx_status(w: Any) -> None:
        httpx.get(f"{w.url}/status/{status}").raise_for_status()


for number in (400, 401, 403, 404, 409, 410, 413, 422):
    _by_status(number, PERMANENT)
for number in (408, 425, 429, 500, 502, 503, 504):
    _by_status(number, TRANSIENT)


@case("urllib.error.HTTPError", TRANSIENT, "HTTP 503 with Retry-After 30", 30.0)
def urllib_retry_after(w):
    urllib.request.urlopen(f"{w.url}/status/503?retry-after=30")


@case("requests.exceptions.HTTPError", TRANSIENT, "HTTP 429 with Retry-After 7", 7.0)
def requests_retry_after(w):
    requests.get(f"{w.url}/status/429?retry-after=7", timeout=5).raise_for_status()


@case("httpx.HTTPStatusError", TRANSIENT, "HTTP 503 with Retry-After 120", 120.0)
def httpx_retry_after_date_by_the_servers_clock(w):
    date = formatdate(SERVER_TIME + 120, usegmt=True)
    httpx.get(f"{w.url}/status/503", params={"retry-after": date}).raise_for_status()


@case("requests.exceptions.HTTPError", TRANSIENT, "HTTP 503", 0.0)
def requests_retry_after_in_the_past(w):
    params = {"retry-after": formatdate(SERVER_TIME - 1000, usegmt=True)}
    requests.get(f"{w.url}/status/503", params=params, timeout=5).raise_for_status()


@case("requests.exceptions.HTTPError", TRANSIENT, "HTTP 503", 86_400.0)
def requests_retry_after_a_year(w):
    requests.get(f"{w.url}/status/503?retry-after=31536000", timeout=5).raise_for_status()


@case("requests.exceptions.HTTPError", TRANSIENT, "HTTP 503")
def requests_retry_after_nonsense(w):
    requests.get(f"{w.url}/status/503?retry-after=soon", timeout=5).raise_for_status()


@case("httpx.HTTPStatusError", PERMANENT, "httpx.HTTPStatusError is a refusal")
def httpx_redirect_not_followed(w):
    httpx.get(f"{w.url}/loop").raise_for_status()


@case("aiohttp.client_exceptions.ClientResponseError", TRANSIENT, "HTTP 502")
def aiohttp_status(w):
    _aiohttp(f"{w.url}/status/502")


@case("aiohttp.client_exceptions.ClientResponseError", PERMANENT, "HTTP 404")
def aiohttp_not_found(w):
    _aiohttp(f"{w.url}/status/404")


def _aiohttp(url: str) -> None:
    async def get() -> None:
        timeout = aiohttp.ClientTimeout(total=0.3)
        async with aiohttp.ClientSession(timeout=timeout) as session, session.get(url) as response:
            response.raise_for_status()
            await response.json()

    asyncio.run(get())


# The connection ---------------------------------------------------------------------------------------


@case("ConnectionRefusedError", TRANSIENT, "errno ECONNREFUSED")
def socket_refused(w):
    socket.create_connection(("127.0.0.1", w.closed_port))


@case("TimeoutError", TRANSIENT, "a timeout")
def socket_read_timeout(w):
    with socket.create_connection(("127.0.0.1", w.silent_port), timeout=0.1) as connection:
        connection.recv(1)


@case("socket.gaierror", TRANSIENT, "not resolved")
def socket_unknown_host(w):
    socket.create_connection((NOWHERE, 80), timeout=5)


@case("socket.gaierror", PERMANENT, "the resolver was asked for something that does not exist")
def socket_unknown_service(w):
    socket.getaddrinfo("127.0.0.1", "no-such-service")


@case("BrokenPipeError", TRANSIENT, "errno EPIPE")
def socket_broken_pipe(w):
    left, right = socket.socketpair()
    right.close()
    with left:
        left.sendall(b"x")


@case("OSError", TRANSIENT, "errno EADDRNOTAVAIL")
def socket_no_such_address(w):
    with socket.socket() as s:
        s.bind(("192.0.2.1", 0))


@case("OSError", TRANSIENT, "errno EADDRINUSE")
def socket_port_taken(w):
    with socket.socket() as s:
        s.bind(("127.0.0.1", w.silent_port))


@case("http.client.RemoteDisconnected", TRANSIENT, "http.client.RemoteDisconnected is a connection error")
def http_client_closed(w):
    connection = http.client.HTTPConnection("127.0.0.1", w.port)
    connection.request("GET", "/close")
    connection.getresponse()


@case("http.client.IncompleteRead", TRANSIENT, "a connection error")
def urllib_truncated(w):
    with urllib.request.urlopen(f"{w.url}/truncated") as response:
        response.read()


@case("http.client.BadStatusLine", TRANSIENT, "a connection error")
def http_client_garbage(w):
    connection = http.client.HTTPConnection("127.0.0.1", w.port)
    connection.request("GET", "/garbage")
    connection.getresponse()


@case("urllib.error.URLError", TRANSIENT, "errno ECONNREFUSED, inside urllib.error.URLError")
def urllib_refused(w):
    urllib.request.urlopen(f"http://127.0.0.1:{w.closed_port}")


@case("urllib.error.URLError", TRANSIENT, "not resolved, inside urllib.error.URLError")
def urllib_unknown_host(w):
    urllib.request.urlopen(f"http://{NOWHERE}")


@case("urllib.error.URLError", PERMANENT, "a wrong URL")
def urllib_unknown_scheme(w):
    urllib.request.urlopen("gopher://here")


@case("requests.exceptions.ConnectionError", TRANSIENT, "ECONNREFUSED, inside")
def requests_refused(w):
    requests.get(f"http://127.0.0.1:{w.closed_port}", timeout=5)


@case("requests.exceptions.ConnectionError", TRANSIENT, "not resolved, inside")
def requests_unknown_host(w):
    requests.get(f"http://{NOWHERE}", timeout=5)


@case("requests.exceptions.ConnectionError", TRANSIENT, "RemoteDisconnected is a connection error, inside")
def requests_closed(w):
    requests.get(f"{w.url}/close", timeout=5)


@case("requests.exceptions.ReadTimeout", TRANSIENT, "a timeout")
def requests_read_timeout(w):
    requests.get(f"{w.url}/hang", timeout=0.1)


@case("requests.exceptions.ChunkedEncodingError", TRANSIENT, "a connection error")
def requests_truncated(w):
    requests.get(f"{w.url}/chunked", timeout=5)


@case("requests.exceptions.TooManyRedirects", PERMANENT, "a refusal")
def requests_redirect_loop(w):
    requests.get(f"{w.url}/loop", timeout=5)


@case("requests.exceptions.MissingSchema", PERMANENT, "a validation error")
def requests_no_scheme(w):
    requests.get("example.invalid/x", timeout=5)


@case("requests.exceptions.JSONDecodeError", PERMANENT, "an error in the data")
def requests_not_json(w):
    requests.get(f"{w.url}/html", timeout=5).json()


@case("requests.exceptions.RetryError", TRANSIENT, "inside requests.exceptions.RetryError")
def requests_retries_exhausted(w):
    retries = urllib3.Retry(1, status_forcelist=[503], backoff_factor=0)
    with requests.Session() as session:
        session.mount("http://", requests.adapters.HTTPAdapter(max_retries=retries))
        session.get(f"{w.url}/status/503", timeout=5)


@case("urllib3.exceptions.MaxRetryError", TRANSIENT, "errno ECONNREFUSED, inside")
def urllib3_refused(w):
    urllib3.PoolManager().request("GET", f"http://127.0.0.1:{w.closed_port}", retries=0)


@case("urllib3.exceptions.ReadTimeoutError", TRANSIENT, "a timeout")
def urllib3_read_timeout(w):
    urllib3.PoolManager().request("GET", f"{w.url}/hang", timeout=0.1, retries=False)


@case("httpx.ConnectError", TRANSIENT, "errno ECONNREFUSED, inside")
def httpx_refused(w):
    httpx.get(f"http://127.0.0.1:{w.closed_port}")


@case("httpx.ConnectError", TRANSIENT, "not resolved, inside")
def httpx_unknown_host(w):
    httpx.get(f"http://{NOWHERE}")


@case("httpx.ReadTimeout", TRANSIENT, "a timeout")
def httpx_read_timeout(w):
    httpx.get(f"{w.url}/hang", timeout=0.1)


@case("httpx.RemoteProtocolError", TRANSIENT, "httpcore.RemoteProtocolError is a connection error, inside")
def httpx_truncated(w):
    httpx.get(f"{w.url}/truncated")


@case("httpx.UnsupportedProtocol", PERMANENT, "a programming error")
def httpx_no_scheme(w):
    httpx.get("example.invalid/x")


@case("json.decoder.JSONDecodeError", PERMANENT, "a validation error")
def httpx_not_json(w):
    httpx.get(f"{w.url}/html").json()


@case("aiohttp.client_exceptions.ClientConnectorError", TRANSIENT, "a connection error")
def aiohttp_refused(w):
    _aiohttp(f"http://127.0.0.1:{w.closed_port}")


@case("aiohttp.client_exceptions.ServerDisconnectedError", TRANSIENT, "a connection error")
def aiohttp_closed(w):
    _aiohttp(f"{w.url}/close")


@case("TimeoutError", TRANSIENT, "a timeout")
def aiohttp_timeout(w):
    _aiohttp(f"{w.url}/hang")


@case("tenacity.RetryError", TRANSIENT, "ECONNREFUSED, inside tenacity.RetryError")
def tenacity_gave_up_on_a_connection(w):
    tenacity.retry(stop=tenacity.stop_after_attempt(2))(lambda: socket_refused(w))()


@case("tenacity.RetryError", PERMANENT, "inside tenacity.RetryError")
def tenacity_gave_up_on_a_mistake(w):
    tenacity.retry(stop=tenacity.stop_after_attempt(2))(lambda: int("x"))()


# TLS --------------------------------------------------------------------------------------------------


@case("ssl.SSLError", PERMANENT, "TLS: ")
def tls_with_a_plain_port(w):
    with socket.create_connection(("127.0.0.1", w.port)) as plain:
        ssl.create_default_context().wrap_socket(plain, server_hostname="localhost")


@case("requests.exceptions.SSLError", PERMANENT, "inside")
def requests_tls_with_a_plain_port(w):
    requests.get(f"https://127.0.0.1:{w.port}", timeout=5)


@case("httpx.ConnectError", PERMANENT, "inside")
def httpx_tls_with_a_plain_port(w):
    httpx.get(f"https://127.0.0.1:{w.port}")


@case("ssl.SSLEOFError", TRANSIENT, "TLS: ")
def tls_cut_off(w):
    left, right = socket.socketpair()
    right.shutdown(socket.SHUT_WR)
    with left, right:
        ssl.create_default_context().wrap_socket(left, server_hostname="localhost")


# Mail and files ---------------------------------------------------------------------------------------


def _send(w: Any, **replies: str) -> None:
    w.mail.replies = replies
    with smtplib.SMTP("127.0.0.1", w.mail.port, timeout=5) as mail:
        if "AUTH" in replies:
            mail.login("me", "pw")
        mail.sendmail("me@here.invalid", ["a@there.invalid", "b@there.invalid"], "hello")


@case("smtplib.SMTPRecipientsRefused", TRANSIENT, "SMTP 450")
def smtp_mailbox_busy(w):
    _send(w, RCPT="450 try later")


@case("smtplib.SMTPRecipientsRefused", PERMANENT, "SMTP 550")
def smtp_no_such_mailbox(w):
    _send(w, RCPT="550 no such user")


@case("smtplib.SMTPSenderRefused", TRANSIENT, "SMTP 451")
def smtp_greylisted(w):
    _send(w, MAIL="451 greylisted")


@case("smtplib.SMTPDataError", PERMANENT, "SMTP 554")
def smtp_message_refused(w):
    _send(w, DATA="554 spam")


@case("smtplib.SMTPAuthenticationError", PERMANENT, "SMTP 535")
def smtp_wrong_password(w):
    _send(w, AUTH="535 no")


@case("smtplib.SMTPConnectError", TRANSIENT, "SMTP 421")
def smtp_closing(w):
    _send(w, HELO="421 closing")


@case("smtplib.SMTPServerDisconnected", TRANSIENT, "a connection error")
def smtp_hung_up(w):
    _send(w, MAIL="hang up")


def _ftp(w: Any, reply: str) -> None:
    w.mail.replies = {"USER": reply}
    with ftplib.FTP(timeout=5) as server:
        server.connect("127.0.0.1", w.mail.port)
        server.login("me", "pw")


@case("ftplib.error_temp", TRANSIENT, "FTP 421")
def ftp_busy(w):
    _ftp(w, "421 too many users")


@case("ftplib.error_perm", PERMANENT, "FTP 530")
def ftp_refused(w):
    _ftp(w, "530 who are you")


# Amazon -----------------------------------------------------------------------------------------------


def _aws(service: str, url: str) -> Any:
    config = botocore.config.Config(
        retries={"total_max_attempts": 1}, read_timeout=0.2, connect_timeout=1, s3={"addressing_style": "path"}
    )
    session = botocore.session.Session()
    session.set_credentials("AKIAIOSFODNN7EXAMPLE", "secret")
    return session.create_client(service, region_name="eu-west-1", endpoint_url=url, config=config)


def _by_aws_error(status: int, code: str, raises: str, kind: str) -> None:
    @case(raises, kind, f"AWS error {code}")
    def dynamodb_error(w: Any) -> None:
        _aws("dynamodb", f"{w.url}/aws/{status}/{code}").list_tables()


ERROR = "botocore.exceptions.ClientError"
_by_aws_error(400, "ThrottlingException", "botocore.errorfactory.ThrottlingException", TRANSIENT)
_by_aws_error(
    400, "ProvisionedThroughputExceededException", "botocore.errorfactory.ProvisionedThroughputExceededException",
    TRANSIENT,
)  # fmt: skip
_by_aws_error(400, "ValidationException", ERROR, PERMANENT)
_by_aws_error(400, "AccessDeniedException", ERROR, PERMANENT)
_by_aws_error(500, "InternalServerError", "botocore.errorfactory.InternalServerError", TRANSIENT)


@case(ERROR, TRANSIENT, "AWS error SlowDown")
def s3_slow_down(w):
    _aws("s3", f"{w.url}/aws/503/SlowDown").list_buckets()


@case("botocore.errorfactory.NoSuchKey", PERMANENT, "AWS error NoSuchKey, HTTP 404")
def s3_no_such_key(w):
    _aws("s3", f"{w.url}/aws/404/NoSuchKey").get_object(Bucket="bucket", Key="key")


@case("botocore.exceptions.EndpointConnectionError", TRANSIENT, "inside botocore.exceptions.ConnectionError")
def botocore_refused(w):
    _aws("s3", f"http://127.0.0.1:{w.closed_port}").list_buckets()


@case("botocore.exceptions.ReadTimeoutError", TRANSIENT, "botocore")
def botocore_read_timeout(w):
    _aws("s3", f"{w.url}/hang").list_buckets()


@case("botocore.exceptions.ParamValidationError", PERMANENT, "a validation error")
def botocore_wrong_parameter(w):
    _aws("s3", w.url).get_object(Bucket="bucket")


@case("botocore.exceptions.ProfileNotFound", PERMANENT, "an error of configuration")
def botocore_no_profile(w):
    botocore.session.Session(profile="no-such-profile").get_credentials()


@case("botocore.exceptions.WaiterError", TRANSIENT, "a shortage that passes")
def botocore_waiter(w):
    waiter = _aws("s3", f"{w.url}/aws/404/NoSuchBucket").get_waiter("bucket_exists")
    waiter.wait(Bucket="bucket", WaiterConfig={"Delay": 0, "MaxAttempts": 2})


@case("aiohttp.client_exceptions.ContentTypeError", PERMANENT, "a refusal")
def aiohttp_not_json(w):
    _aiohttp(f"{w.url}/html")


@case("urllib3.exceptions.ProtocolError", TRANSIENT, "IncompleteRead is a connection error, inside")
def urllib3_truncated(w):
    urllib3.PoolManager().request("GET", f"{w.url}/truncated", retries=False)


@case("RuntimeError", UNCLASSIFIED, "nothing is known of RuntimeError")
def wrapped_by_hand(w):
    try:
        requests_refused(w)
    except requests.ConnectionError as exc:
        raise RuntimeError("the shop is closed") from exc
