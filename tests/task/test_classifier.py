"""The classifier over real exceptions of real libraries, and over what apps and tasks say themselves."""

from __future__ import annotations

import asyncio
import builtins
import sys
from collections import Counter
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest
import requests

from celery_durable.classify import KINDS, Rules, judge, table_of
from celery_durable.classify_table import TABLE
from celery_durable.errors import SettingsError
from celery_durable.failures import qualified_name
from tests.task.failing import databases, local, web
from tests.task.failing.case import PERMANENT, TIMEOUT, TRANSIENT, UNCLASSIFIED, Case
from tests.task.failing.world import World

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CASES = web.CASES + local.CASES + databases.CASES


class Surroundings:
    """What a case asks for is started when it asks."""

    def __init__(self, local_servers: World, request: pytest.FixtureRequest) -> None:
        self._local, self._request = local_servers, request

    def __getattr__(self, name: str) -> Any:
        fixtures = {"postgres": "postgres_database", "mariadb": "mariadb_database", "redis": "redis_server"}
        return self._request.getfixturevalue(fixtures[name]) if name in fixtures else getattr(self._local, name)


@pytest.fixture(scope="module")
def local_servers() -> Iterator[World]:
    with World() as servers:
        yield servers


@pytest.fixture(scope="module")
def postgres_database(postgres_server) -> str:
    return postgres_server.database()


@pytest.fixture(scope="module")
def mariadb_database(mariadb_server) -> str:
    return mariadb_server.database()


@pytest.fixture
def w(local_servers, request) -> Surroundings:
    return Surroundings(local_servers, request)


def raised(fail: Callable[[], Any]) -> Exception:
    try:
        fail()
    except Exception as exc:  # noqa: BLE001 - whatever it is
        return exc
    pytest.fail("it was to raise")


def test_there_are_enough_cases():
    assert len(CASES) >= 60
    assert len({case.raises for case in CASES}) >= 60
    assert set(Counter(case.kind for case in CASES)) == set(KINDS)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_real_exception(case: Case, w):
    exc = raised(lambda: case.fail(w))

    verdict = judge(exc, Rules())

    assert (qualified_name(type(exc)), verdict.kind) == (case.raises, case.kind), repr(exc)
    assert case.why in verdict.why
    assert verdict.retryable is (case.kind == TRANSIENT)
    assert verdict.retry_after == case.retry_after


def test_every_name_in_the_table_is_a_class_that_calls_itself_so():
    for name in TABLE:
        module, _, attribute = (name if "." in name else f"builtins.{name}").rpartition(".")
        if module.endswith(".IMAP4"):
            module, attribute = "imaplib", "IMAP4.abort"
        try:
            found: Any = import_module(module)
        except ImportError:
            continue  # the library is not installed here
        for part in attribute.split("."):
            found = getattr(found, part, None)
        elsewhere = found is None and module == "sqlalchemy.exc" and attribute == "Error"  # DB-API's, not theirs
        before_3_11 = name in {"asyncio.exceptions.TimeoutError", "concurrent.futures._base.TimeoutError"}
        renamed = name == "re.error" and sys.version_info >= (3, 13)
        assert elsewhere or before_3_11 or renamed or qualified_name(found) == name


# The order of judgement -------------------------------------------------------------------------------


@pytest.fixture
def refused(w) -> Exception:
    return raised(lambda: requests.get(f"http://127.0.0.1:{w.closed_port}", timeout=5))


def test_the_task_speaks_first(refused):
    rules = Rules(own=lambda _: PERMANENT, retried=(Exception,))
    verdict = judge(refused, rules)
    assert (verdict.kind, verdict.retryable, verdict.why) == (PERMANENT, False, "classify() says permanent")


def test_a_task_that_says_nothing_leaves_it_to_the_others(refused):
    assert judge(refused, Rules(own=lambda _: None)) == judge(refused, Rules())


def test_a_broken_classify_hides_nothing(refused):
    def broken(_: BaseException) -> str:
        raise KeyError("my secret")

    verdict = judge(refused, Rules(own=broken))
    assert verdict.kind == TRANSIENT
    assert verdict.why.startswith("classify() itself raised KeyError; errno ECONNREFUSED")
    for nonsense in ("transcient", 7, True, [TRANSIENT], object()):
        verdict = judge(refused, Rules(own=lambda _, answer=nonsense: answer))
        assert verdict.kind == TRANSIENT
        assert "classify() returned" in verdict.why


@pytest.mark.parametrize(
    ("rules", "kind", "why"),
    [
        (Rules(retried=(KeyError, OSError)), TRANSIENT, "autoretry_for names OSError"),
        (Rules(unretried=(OSError,), retried=(Exception,)), PERMANENT, "dont_autoretry_for names OSError"),
        (Rules(expected=(OSError,)), PERMANENT, "throws names OSError"),
        (Rules(expected=(OSError,), retried=(OSError,)), TRANSIENT, "autoretry_for names OSError"),
        (Rules(expected=(OSError,), table={"OSError": TRANSIENT}), PERMANENT, "throws names OSError"),
        (Rules(table={"OSError": PERMANENT}), PERMANENT, "durable_classify names OSError"),
        (
            Rules(table={"requests.ConnectionError": TIMEOUT}),
            TIMEOUT,
            "durable_classify names requests.ConnectionError",
        ),
        (Rules(table={"OSError": PERMANENT, "requests.exceptions.ConnectionError": TRANSIENT}), TRANSIENT, "requests"),
        (Rules(table={"nowhere.Error": PERMANENT}), TRANSIENT, "errno ECONNREFUSED"),
    ],
)
def test_order(refused, rules, kind, why):
    verdict = judge(refused, rules)
    assert verdict.kind == kind
    assert why in verdict.why


def test_retry_after_is_honoured_whoever_says_that_it_is_retried(w):
    exc = raised(lambda: requests.get(f"{w.url}/status/404?retry-after=9", timeout=5).raise_for_status())
    assert judge(exc, Rules()).retry_after is None
    assert judge(exc, Rules(own=lambda _: TRANSIENT)).retry_after == 9
    assert judge(exc, Rules(retried=(OSError,))).retry_after == 9
    assert judge(exc, Rules(table={"OSError": TRANSIENT})).retry_after == 9
    assert judge(exc, Rules(own=lambda _: PERMANENT)).retry_after is None


@pytest.mark.parametrize("kind", [UNCLASSIFIED, TIMEOUT])
def test_what_is_not_known_follows_the_setting(kind):
    rules = {setting: Rules(own=lambda _: kind, unclassified=setting) for setting in ("dead", "retry")}
    assert {setting: judge(RuntimeError(), r).retryable for setting, r in rules.items()} == {
        "dead": False,
        "retry": True,
    }


def test_an_exception_that_fights_back_is_judged_all_the_same():
    class Hostile(Exception):
        def __getattribute__(self, name: str) -> Any:
            raise RuntimeError(name)

        def __str__(self) -> str:
            raise RuntimeError

    class Endless(OSError):
        @property
        def response(self) -> Endless:
            return self

        errno = property(lambda _: 1 / 0)

    for exc in (Hostile(), Endless()):
        assert judge(exc, Rules(retried=(KeyError,), table={"KeyError": TRANSIENT})).kind == UNCLASSIFIED
    loop = requests.ConnectionError()
    loop.__cause__ = requests.ConnectionError(loop)
    assert judge(loop, Rules()).kind == TRANSIENT


# Groups -----------------------------------------------------------------------------------------------

ExceptionGroup: Any = getattr(builtins, "ExceptionGroup", None)
groups = pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 has no exception groups of its own")


@groups
def test_the_worst_of_a_real_group_decides(w):
    def group() -> None:
        async def both() -> None:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(asyncio.to_thread(requests.get, f"http://127.0.0.1:{w.closed_port}", timeout=5))
                tasks.create_task(asyncio.to_thread(int, "x"))

        asyncio.run(both())

    exc = raised(group)
    verdict = judge(exc, Rules())
    assert qualified_name(type(exc)) == "ExceptionGroup"
    assert verdict.kind in {PERMANENT, TRANSIENT}  # the second may have been cancelled before it failed
    assert "in ExceptionGroup: " in verdict.why


@groups
@pytest.mark.parametrize(
    ("members", "kind"),
    [
        ("permanent transient", PERMANENT),
        ("transient unclassified", UNCLASSIFIED),
        ("timeout transient", TIMEOUT),
        ("timeout unclassified", UNCLASSIFIED),
        ("unclassified permanent timeout", PERMANENT),
        ("transient transient", TRANSIENT),
    ],
)
def test_worse_and_worst(w, members, kind):
    samples = {TRANSIENT: web.requests_refused, PERMANENT: local.missing_file, TIMEOUT: local.soft_time_limit,
               UNCLASSIFIED: local.command_failed}  # fmt: skip
    real = [raised(lambda fail=samples[name]: fail(w)) for name in members.split()]
    nested = ExceptionGroup("outer", [real[0], ExceptionGroup("inner", real[1:])])
    for group in (ExceptionGroup("flat", real), nested):
        verdict = judge(group, Rules())
        assert verdict.kind == kind
        assert verdict.retryable is (kind == TRANSIENT)


@groups
def test_groups_are_judged_by_the_rules_and_wait_for_all(w):
    real = [raised(lambda n=n: requests.get(f"{w.url}/status/503?retry-after={n}", timeout=5).raise_for_status())
            for n in (5, 60, 1)]  # fmt: skip
    group = ExceptionGroup("busy", real)
    assert judge(group, Rules()).retry_after == 60
    assert judge(group, Rules(table={"requests.HTTPError": PERMANENT})).kind == PERMANENT
    assert judge(group, Rules(expected=(ExceptionGroup,))).why == "throws names ExceptionGroup"
    deep: Exception = real[0]
    for _ in range(50):
        deep = ExceptionGroup("deeper", [deep])
    assert judge(deep, Rules()).kind == UNCLASSIFIED


# The setting ------------------------------------------------------------------------------------------


def test_classes_and_names_are_one():
    table = table_of(
        {KeyError: TRANSIENT, "builtins.OSError": PERMANENT, requests.HTTPError: TIMEOUT, "a.b.C": TRANSIENT}
    )
    assert table == {
        "KeyError": TRANSIENT, "OSError": PERMANENT, "requests.exceptions.HTTPError": TIMEOUT, "a.b.C": TRANSIENT
    }  # fmt: skip
    assert table_of(None) == {}


@pytest.mark.parametrize(
    ("setting", "fix"),
    [
        ({"OSError": "transiet"}, "did you mean 'transient'?"),
        ({"OSError": "lease_expired"}, "use one of 'transient', 'timeout', 'unclassified', 'permanent'"),
        ({"OSError": None}, "use one of"),
        ({"RateLimitError": TRANSIENT}, '"myapp.errors.RateLimitError"'),
        ({"no such.name": TRANSIENT}, "its dotted name such as"),
        ({int: TRANSIENT}, "use an exception class"),
        ({7: TRANSIENT}, "use an exception class"),
        (["OSError"], "expected a mapping"),
    ],
)
def test_a_wrong_setting_says_the_fix(setting, fix):
    with pytest.raises(SettingsError, match="durable_classify") as caught:
        table_of(setting)
    assert fix in str(caught.value)
