"""Charge 300 orders with Celery while its workers are killed, then let the gateway count.

    python demo.py                                     filesystem broker, SQLite ledger
    python demo.py --broker redis://localhost/0 \
                   --ledger postgresql+psycopg://localhost/shop

Exit code 0 only when each order was charged once, by the gateway's own count, and the ledger agrees.
"""

import argparse
import random
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from chaos import Blow
from fleet import Fleet, FleetError
from run import Run, Verdict
from screen import Row, Screen
from services import DemoError
from stage import Place, set_stage

HERE = Path(__file__).resolve().parent
ORDERS_PER_KILL = 5  # fewer, and the work is over before its kills are


@dataclass(frozen=True)
class Options:
    """What the command line said."""

    broker: str
    ledger: str
    seed: int
    orders: int
    kills: int
    timeout: float
    keep: Path | None


def parse(arguments: list[str]) -> Options:
    """Read the command line; exits with 2 and a sentence when it makes no sense."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--broker", metavar="URL", default="filesystem://", help="default: a folder of files")
    add("--ledger", metavar="URL", default="", help="SQLAlchemy URL (default: a SQLite file)")
    add("--seed", type=int, default=random.randrange(10**6), help="repeats a plan of kills")  # noqa: S311
    add("--orders", type=int, default=300, help="how many of the orders in orders.csv (default: %(default)s)")
    add("--kills", type=int, default=12, help="how many SIGKILLs (default: %(default)s)")
    add("--timeout", type=float, default=120, help="seconds before it gives up (default: %(default)s)")
    add("--keep", type=Path, metavar="DIR", help="work in DIR and leave everything there")
    options = Options(**vars(parser.parse_args(arguments)))
    if options.orders < 1 or options.kills < 0:
        parser.error("--orders must be at least 1 and --kills at least 0")
    if options.kills * ORDERS_PER_KILL > options.orders:
        parser.error(
            f"{options.kills} kills need at least {options.kills * ORDERS_PER_KILL} orders "
            f"to be spread over: raise --orders or lower --kills"
        )
    return options


@contextmanager
def working_directory(keep: Path | None) -> Iterator[Path]:
    """Give the directory for everything that the demo writes."""
    if keep is None:
        # Processes just killed may still be writing their last line while it is removed.
        with tempfile.TemporaryDirectory(prefix="quickstart-", ignore_cleanup_errors=True) as folder:
            yield Path(folder).resolve()
        return
    try:
        keep.mkdir(parents=True, exist_ok=True)
        empty = not any(keep.iterdir())
    except OSError as error:
        msg = f"cannot work in {keep}: {error.strerror}"
        raise DemoError(msg) from error
    if not empty:
        msg = f"{keep} is not empty: name a new directory for --keep"
        raise DemoError(msg)
    yield keep.resolve()


def report(screen: Screen, verdict: Verdict) -> None:
    """Print the reconciliation."""
    count, kills = verdict.count, verdict.kills
    kinds = ", ".join(f"{kills[blow]} {blow.value}" for blow in Blow)
    done = [seconds for seconds in verdict.recoveries if seconds is not None]
    recovered = len(done) == len(verdict.recoveries)
    slowest = f"{max(done, default=0.0):.1f} s" if recovered else "never"
    agrees = not verdict.disagreements
    ledger = "all succeeded, `durable verify` found nothing" if agrees else verdict.disagreements[0]
    screen.say()
    screen.table(
        "Reconciliation, as the gateway counts it",
        [
            Row("orders", f"{count.orders}"),
            Row("requests", f"{count.requests}", f"{count.repeated} of them asked again, after a crash"),
            Row("charged once", f"{count.charged_once}", good=count.charged_once == count.orders),
            Row("charged twice", f"{count.charged_twice}", good=not count.charged_twice),
            Row("lost", f"{count.lost}", good=not count.lost),
            Row("kills", f"{kills.total()}", kinds, good=False if verdict.missing_kills else None),
            Row("slowest recovery", slowest, "from a kill until all it had stranded was free to run again"),
            Row("other exits", f"{verdict.unexpected_exits}", "of workers, without being killed"),
            Row("ledger", "agrees" if agrees else "differs", ledger, good=agrees),
            Row("time", f"{verdict.seconds:.1f} s"),
        ],
    )
    for line in verdict.disagreements[1:]:
        screen.say(line, "red")
    if verdict.missing_kills:
        screen.say(f"The work was over before the last {verdict.missing_kills} kills: try more --orders.", "red")


def play(options: Options, screen: Screen) -> int:
    """Run the demo in a directory of its own; returns the exit code."""
    with ExitStack() as stack:
        state = stack.enter_context(working_directory(options.keep))
        stage = set_stage(Place(HERE, state, options.broker, options.ledger), stack.callback)
        orders = stage.read_orders(options.orders)
        stage.check_broker()
        stage.submit(orders)
        screen.say(
            f"{len(orders)} orders are in the ledger. Two workers charge them; {options.kills} times "
            f"SIGKILL hits a worker or a pool child (seed {options.seed})."
        )
        ledger = options.ledger or "sqlite:"
        screen.say(f"Broker: {options.broker.partition(':')[0]}; ledger: {ledger.partition(':')[0]}.")
        fleet = Fleet(HERE, stage.place.logs, stage.env, size=2)
        stack.callback(fleet.stop)
        run = Run(stage, screen, fleet, orders)
        stack.callback(run.stop)
        stack.callback(screen.close)
        stack.callback(finish_undisturbed)
        verdict = run.play(options.kills, options.seed, options.timeout)
    report(screen, verdict)
    if options.keep:
        screen.say(f"Everything is kept in {options.keep}.")
    return 0 if verdict.ok else 1


def finish_undisturbed() -> None:
    """From here on only cleaning up is left: a second Ctrl-C must not leave workers behind."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def interrupted(_signal: int, _frame: FrameType | None) -> None:
    """Treat SIGTERM as Ctrl-C, so that it cleans up too."""
    raise KeyboardInterrupt


def main() -> int:
    """Run the demo."""
    options = parse(sys.argv[1:])
    signal.signal(signal.SIGTERM, interrupted)
    screen = Screen(options.orders)
    try:
        return play(options, screen)
    except (DemoError, FleetError) as error:
        sys.stderr.write(f"demo: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("demo: interrupted, everything it started is stopped\n")
        return 130


if __name__ == "__main__":
    sys.exit(main())
