"""Tasks that depend on others, wait, try again, and know secrets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

from celery import Task
from celery.exceptions import Reject

from tests.crash.witness import FINISHED, STARTED

if TYPE_CHECKING:
    from collections.abc import Callable


#: Retries of a task that depends on a server.
BUDGET = 3


def add_failing(task: Callable[..., Any], saw: Callable[..., None]) -> None:
    """Give an app all of them."""
    _add_dependent(task, saw)
    _add_leaking(task)


def _add_dependent(task: Callable[..., Any], saw: Callable[..., None]) -> None:
    """Tasks that need something which is not there at first."""

    @task(name="fetches", max_retries=BUDGET, retry_backoff=False, default_retry_delay=600)
    def fetches(self, port):
        """Asks a server, and knows nothing of retries."""
        saw(self, STARTED, port)
        with urlopen(f"http://127.0.0.1:{port}/rates", timeout=10) as answer:
            return answer.read().decode()

    @task(name="reads")
    def reads(self, path):
        """Waits for a file."""
        saw(self, STARTED, path)
        if not Path(path).exists():
            self.wait("the rates of today have not arrived", retry_in=2, give_up_after=3600)
        saw(self, FINISHED, path)
        return Path(path).read_text(encoding="utf-8")

    @task(name="stumbles", retry_backoff=False, default_retry_delay=0)
    def stumbles(self, n, times=2, how="asked"):
        """Succeeds in the end; `asked` retries by `self.retry()`, anything else by what it raises."""
        saw(self, STARTED, n)
        if self.request.retries < times:
            trouble = ConnectionError(f"{n} is away")
            raise self.retry(exc=trouble, countdown=0.05) if how == "asked" else trouble
        saw(self, FINISHED, n)
        return n


def _add_leaking(task: Callable[..., Any]) -> None:
    """Tasks that let out what they know in every way there is."""

    @task(name="leaks", redact=("owner",), max_retries=1, max_losses=1)
    def leaks(self, customer, owner, how="raise"):
        said = f"{owner} is not here, nor is {customer['list'][0]['api_key']}"
        return LEAKS[how](self, customer, owner, said)

    @task(name="keyed_leaks", redact=("owner",), idempotency_key="{nothing}")
    def keyed_leaks(self, customer, owner): ...

    @task(name="stock_leaks", base=Task)
    def stock_leaks(self, customer, owner_password, how="raise"):
        said = f"{owner_password} with {customer['card']['number']} was refused: {customer!r}"
        return LEAKS[how](self, customer, owner_password, said)


def _raise(exc: BaseException) -> None:
    raise exc


def _by_cause(_self: Task, customer: dict[str, Any], _owner: str, said: str) -> None:
    try:
        _raise(KeyError(said))
    except KeyError as cause:
        raise ValueError(f"no: {customer['list'][0]['api_key']}") from cause


def _by_local_variable(_self: Task, customer: dict[str, Any], _owner: str, _said: str) -> None:
    password = Path(customer["vault"]).read_text(encoding="utf-8")
    raise RuntimeError(f"the vault did not take {password}")


LEAKS: dict[str, Callable[..., Any]] = {
    "raise": _by_cause,
    "locals": _by_local_variable,
    "text": lambda _self, _customer, owner, _said: _raise(
        RuntimeError(f"login failed: password={owner[1:]!r}, Authorization: Bearer {owner}")
    ),
    "retry": lambda self, _customer, _owner, said: self.retry(exc=ConnectionError(said), countdown=600),
    "return": lambda _self, customer, owner, said: {"who": owner, "all": customer, "said": said},
    "step": lambda self, customer, owner, said: self.step("ask", dict, who=owner, said=said, all=customer)["who"] and 7,
    "checkpoint": lambda self, customer, owner, _said: self.checkpoint([owner, customer]) or self.wait(owner),
    "wait": lambda self, _customer, _owner, said: self.wait(said, retry_in=600),
    "sleep": lambda self, _customer, _owner, said: self.sleep(600, said),
    "reject": lambda _self, _customer, _owner, said: _raise(Reject(said, requeue=False)),
    "requeue": lambda _self, _customer, _owner, said: _raise(Reject(said, requeue=True)),
    "exit": lambda _self, _customer, _owner, said: _raise(SystemExit(said)),
    "memory": lambda _self, _customer, _owner, said: _raise(MemoryError(said)),
}
