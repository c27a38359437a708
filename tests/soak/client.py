"""The customer: gives orders at a steady rate, and writes down what was promised. `python -m tests.soak.client`.

One order in ten is a chain of two, one in twenty has a countdown. What a call raises is an answer too: a customer does
not ask again. Several threads, for a call may hang as long as a server does.
"""

from __future__ import annotations

import itertools
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from celery import chain

from tests.crash.witness import Witness
from tests.soak.app import app
from tests.soak.judge import ACCEPTED, ATTEMPTED, REFUSED
from tests.soak.tasks import duration

if TYPE_CHECKING:
    from celery.canvas import Signature

THREADS = 8


def main(folder: Path, seed: int, rate: float, seconds: float) -> None:
    """Give `rate` orders a second."""
    turns = itertools.count()
    witness = Witness(folder / "client")
    began = time.monotonic()

    def serve() -> None:
        for turn in turns:
            due = began + turn * (1.1 / rate)
            if turn * (1.1 / rate) >= seconds:
                return
            time.sleep(max(0.0, due - time.monotonic()))
            submit(witness, seed, turn)

    threads = [threading.Thread(target=serve) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def submit(witness: Witness, seed: int, turn: int) -> None:
    """One call, for one order or two."""
    order = app.tasks["order"]
    numbers = [2 * turn, 2 * turn + 1] if turn % 10 == 0 else [2 * turn]
    call: Signature = chain(*(order.si(n, duration(seed, n)) for n in numbers))
    if turn % 20 == 5:
        call = call.set(countdown=2)
    for number in numbers:
        witness.saw(ATTEMPTED, str(number))
    try:
        call.apply_async()
    except Exception as error:  # noqa: BLE001 - whatever it is, it was no promise
        word, note = REFUSED, f"{type(error).__name__}: {error}"[:300]
    else:
        word, note = ACCEPTED, ""
    for number in numbers:
        witness.saw(word, str(number), note=note)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4]))
