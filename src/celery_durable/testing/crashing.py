"""``crash_everywhere``: a task is run once per crash point, killed there, recovered, and judged by its effects."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from celery_durable import DurableTask, ledger, states
from celery_durable.testing.sandbox import Sandbox, SandboxError
from celery_durable.testing.trail import Trail
from celery_durable.testing.verdicts import CrashTestFailed, Report, Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from celery.result import AsyncResult

    from celery_durable.testing.trail import Point

#: How often one place is struck: a task that comes by again and again is killed there the first times.
MOST_TIMES = 3


class Durable(Sandbox):
    """A sandbox that crashes tasks: what the fixture ``durable`` gives."""

    def crash_everywhere(  # noqa: PLR0913 - a call of a task, and how it is judged
        self, task: DurableTask, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, *,
        check: Any = (), reset: Any = (), ends: str = states.SUCCEEDED, events: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Report:  # fmt: skip
        """Run a task once per crash point, each time killed there and recovered; see that ``check`` sees one effect.

        ``check`` is called when the task is over: it fails by an exception or by returning False. It has to fail before
        the task has run, or it would see nothing. ``reset`` makes the world anew before each run. Both may be several
        functions, and are given the sandbox if they take an argument. Effects have to be outside of the process (a
        file, a database, a server): memory dies with the process that is killed, as it does in production.
        ``ends`` is the state that the task is to end in, ``events`` what it is sent (name to payload) as soon as it is
        submitted. ``options`` are ``apply_async``'s.

        Waits, retries and sleeps are advanced through. Rows that the task submits are run on, too.

        Raises:
            CrashTestFailed: an ``AssertionError`` that names the crash points that broke.
            SandboxError: it fails without a crash already, or its check cannot see anything.
        """
        __tracebackhide__ = True
        report = self.crash_report(task, args, kwargs, check=check, reset=reset, ends=ends, events=events, **options)
        if not report.ok:
            raise CrashTestFailed(report)
        return report

    def crash_report(  # noqa: PLR0913 - a call of a task, and how it is judged
        self, task: DurableTask, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, *,
        check: Any = (), reset: Any = (), ends: str = states.SUCCEEDED, events: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Report:  # fmt: skip
        """Do what ``crash_everywhere`` does, and return the report whatever it says.

        Raises:
            SandboxError: as there.
        """
        call = _Call(self, self._durable(task), args, dict(kwargs or {}), options, events or {})
        test = _Test(call, _hooks(check), _hooks(reset), ends)
        points, again = test.rehearse(first=True), test.rehearse(first=False)
        strays = tuple(self.strays)
        struck = [point for point in points if point.nth <= MOST_TIMES]
        verdicts = tuple(test.strike(point) for point in struck)
        return Report(task.name, verdicts, _difference(points, again), strays, len(points) - len(struck))

    def crash(
        self, task: DurableTask, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, *,
        at: str, reset: Any = (), **options: Any,
    ) -> AsyncResult:  # fmt: skip
        """Submit a task, kill its process at the first crash point that contains ``at``, and leave it so.

        It is run to its end before, to see which points it has; ``reset`` makes the world anew before both runs. The
        row is running under a lease that nobody renews: ``advance`` past it, then ``work``.

        Raises:
            SandboxError: there is no such crash point; the message lists those that there are.
        """
        call = _Call(self, self._durable(task), args, dict(kwargs or {}), options)
        self.begin_anew(_hooks(reset))
        rehearsal = self.new_trail()
        call.submit()
        self.work_out(rehearsal, task=task.name)
        points = rehearsal.points()
        found = next((p for p in points if at in str(p)), None)
        if found is None:
            raise SandboxError(f"{task.name} has no crash point {at!r}; it has: {'; '.join(map(str, points))}.")
        self.begin_anew(_hooks(reset))
        result = call.submit()
        self.work_out(self.new_trail(), found, task=task.name, recover=False)
        return result

    def begin_anew(self, resets: Sequence[Any]) -> None:
        """Forget every task, and make the world anew."""
        self.reset()
        for reset in resets:
            _given(reset, self)

    def new_trail(self) -> Trail:
        """Begin to note crash points."""
        path = self.folder / "trail"
        path.unlink(missing_ok=True)
        return Trail(path)

    def _durable(self, task: Any) -> DurableTask:
        if not isinstance(task, DurableTask):
            raise SandboxError(f"{getattr(task, 'name', task)!r} is no durable task: give it base=DurableTask.")
        if task.app is not self.app:
            raise SandboxError(
                f"{task.name} belongs to the app {task.app.main!r}, the sandbox to {self.app.main!r}: "
                "let the fixture durable_app return the task's app."
            )
        return task


@dataclass(frozen=True, slots=True)
class _Call:
    kit: Durable
    task: DurableTask
    args: Sequence[Any]
    kwargs: dict[str, Any]
    options: dict[str, Any]
    events: Mapping[str, Any] = field(default_factory=dict)

    def submit(self) -> AsyncResult:
        try:
            result = self.task.apply_async(tuple(self.args), self.kwargs, **self.options)
        except TypeError as exc:
            raise SandboxError(f"{self.task.name} cannot be submitted like this: {exc}.") from exc
        for name, payload in self.events.items():
            ledger(self.kit.app).send_event(result.id, name, payload)
        return result


@dataclass(frozen=True, slots=True)
class _Test:
    call: _Call
    checks: Sequence[Any]
    resets: Sequence[Any]
    ends: str

    def rehearse(self, *, first: bool) -> list[Point]:
        """Run the task without a crash; return the points that it came by."""
        kit, name = self.call.kit, self.call.task.name
        self.call.kit.begin_anew(self.resets)
        if first and self.checks and not self._problem():
            raise SandboxError(
                f"check() passes before {name} has run: it sees no effect. Let it fail while the effect is missing."
            )
        trail = kit.new_trail()
        result = self.call.submit()
        kit.work_out(trail, task=name)
        state = kit.record(result).state
        if state != self.ends:
            raise SandboxError(
                f"{name} is {state} without a crash already, not {self.ends}: {kit.why(result)}. "
                "Say ends=... if it is to end so, events={...} if it waits for events."
            )
        problem = self._problem()
        if problem:
            raise SandboxError(
                f"{name} fails without a crash already: {problem}. The task is {kit.record(result).state}: "
                f"{kit.why(result)}. Effects have to be outside of the process, in a file, a database or a server: "
                "each run is a process of its own."
            )
        return trail.points()

    def strike(self, point: Point) -> Verdict:
        """Run the task with a crash at a point, recover, and judge."""
        kit, task = self.call.kit, self.call.task
        self.call.kit.begin_anew(self.resets)
        trail = kit.new_trail()
        result = self.call.submit()
        if not kit.work_out(trail, point, task=task.name):
            return Verdict(str(point), "this run did not come by here: its path differs between runs")
        state = kit.record(result).state
        if state != self.ends and not (task.on_loss == "dead" and state == states.DEAD):
            return Verdict(str(point), f"the task is {state} instead of {self.ends}: {kit.why(result)}")
        return Verdict(str(point), self._problem())

    def _problem(self) -> str:
        """Ask the checks; return what is wrong, or nothing."""
        for check in self.checks:
            named = f"{getattr(check, '__name__', 'check')}()".replace("<lambda>()", "check()")
            try:
                answer = _given(check, self.call.kit)
            except Exception as exc:  # noqa: BLE001 - an answer like any other
                # pytest explains an assertion in further lines
                told = str(exc).strip().partition("\n")[0] or type(exc).__name__
                kind = "" if isinstance(exc, AssertionError) else f"{type(exc).__name__}: "
                return f"{named} failed: {kind}{told}"
            if answer is False:
                return f"{named} returned False"
        return ""


def _hooks(given: Any) -> Sequence[Any]:
    return (given,) if callable(given) else tuple(given or ())


def _given(hook: Any, kit: Durable) -> Any:
    """Call a hook, with the sandbox if it takes an argument."""
    parameters = inspect.signature(hook).parameters.values()
    needs = [p for p in parameters if p.default is p.empty and p.kind in {p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD}]
    return hook(kit) if needs else hook()


def _difference(first: Sequence[Point], second: Sequence[Point]) -> str:
    """Say how the paths of two runs without a crash differ."""
    for n in range(max(len(first), len(second))):
        one = str(first[n]) if n < len(first) else "the end"
        other = str(second[n]) if n < len(second) else "the end"
        if one != other:
            return (
                f"once it came to {one}, once to {other} in that place. Name steps by what they are about, "
                "never by a time or a random number."
            )
    return ""


__all__ = ["Durable"]
