"""Order over HTTP while processes of the shop are killed, then let the gateway count.

    python storm.py                          200 orders, 12 kills; `python run.py` has to run beside it
    python storm.py --orders 500 --kills 30 --seed 7

Exit code 0 only when every order was charged once by the gateway's own count, booked once, and has its invoice.
"""

import argparse
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import django
from run import HERE, PROCESSES, STATE

ITEMS = ("Kettle", "Teapot", "Cup", "Tea, 250 g")
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def place(url: str, number: str, item: str, until: float) -> None:
    """Order, and ask again until the shop has said yes: the number makes it the same order."""
    body = json.dumps({"number": number, "item": item}).encode()
    while True:
        try:
            request = urllib.request.Request(f"{url}/api/orders", data=body)  # noqa: S310 - the shop's own
            with OPENER.open(request, timeout=10):
                return
        except OSError:  # the web server was killed, or is not up again yet
            if time.monotonic() > until:
                raise
            time.sleep(0.2)


def children(pid: int) -> list[int]:
    """Return the direct children of a process, as /proc tells them."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(child) for child in text.split()]


def alive(pid: int) -> bool:
    """Whether a process runs, and is not merely waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Storm:
    """Kills processes of the shop: web server, gateway, workers, pool children, beat."""

    def __init__(self, rng: random.Random) -> None:
        """Take a source of chance; a seed repeats whom it chooses."""
        self._rng = rng
        self.kills: Counter[str] = Counter()

    def strike(self) -> bool:
        """Kill somebody with SIGKILL, which nothing can catch; False where the chosen one is dead already."""
        pids = json.loads(PROCESSES.read_text())
        name = self._rng.choice(["worker-1", "worker-2", "worker-1", "worker-2", "web", "gateway", "beat"])
        pool = children(pids[name]) if name.startswith("worker") else []
        pid, victim = pids[name], name.partition("-")[0]
        if pool and self._rng.random() < 0.5:  # noqa: PLR2004 - one half
            pid, victim = self._rng.choice(pool), "pool child"
        if not alive(pid):
            return False
        os.kill(pid, signal.SIGKILL)
        self.kills[victim] += 1
        print(f"killed: {victim} (pid {pid})", flush=True)
        return True


def progress(prefix: str) -> tuple[int, int]:
    """Return how many orders of this storm are paid, and how many have their invoice."""
    from orders.models import Invoice, Payment

    paid = Payment.objects.filter(order__number__startswith=prefix).values("order").distinct().count()
    return paid, Invoice.objects.filter(order__number__startswith=prefix).count()


def reconcile(prefix: str, orders: int, kills: Counter[str]) -> bool:
    """Print what the gateway charged beside what the shop booked; say whether all is well."""
    from orders.models import Invoice, Order, Payment

    with sqlite3.connect(STATE / "gateway.db") as book:
        query = "SELECT number FROM {} WHERE number LIKE ?"
        requests = len(book.execute(query.format("requests"), (f"{prefix}%",)).fetchall())
        charged = Counter(number for (number,) in book.execute(query.format("charges"), (f"{prefix}%",)))
    payments = Payment.objects.filter(order__number__startswith=prefix)
    booked = Counter(payments.values_list("order__number", flat=True))
    placed = Order.objects.filter(number__startswith=prefix).count()
    invoices = Invoice.objects.filter(order__number__startswith=prefix).count()
    command = [sys.executable, "-m", "celery", "-A", "shop", "durable", "verify"]
    verify = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False)
    ok = placed == orders == len(charged) == charged.total() == len(booked) == booked.total() == invoices
    print(
        f"\norders placed   {placed} of {orders}\nrequests        {requests} at the gateway"
        f"\ncharged         {len(charged)}, {charged.total() - len(charged)} twice"
        f"\nbooked          {len(booked)}, {booked.total() - len(booked)} twice\ninvoices        {invoices}"
        f"\nlost            {orders - len(booked)}"
        f"\nkills           {kills.total()}: {', '.join(f'{n} {who}' for who, n in kills.most_common())}"
        f"\nledger          {'agrees' if verify.returncode == 0 else verify.stdout + verify.stderr}"
    )
    return ok and verify.returncode == 0


def main() -> int:
    """Order, kill, wait, reconcile."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--orders", type=int, default=200)
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))  # noqa: S311 - it is printed
    parser.add_argument("--timeout", type=float, default=180, help="seconds until it gives up (default: %(default)s)")
    options = parser.parse_args()
    if not PROCESSES.exists():
        parser.exit(1, "The shop does not run: start `python run.py` in another terminal first.\n")
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")
    django.setup()
    from django.conf import settings

    rng = random.Random(options.seed)  # noqa: S311
    print(f"{options.orders} orders, {options.kills} kills, seed {options.seed}", flush=True)
    prefix, until = f"S{rng.randrange(10**6):06d}-{os.getpid()}-", time.monotonic() + options.timeout
    storm, done = Storm(rng), threading.Semaphore(0)

    def order(n: int) -> None:
        place(options.url, f"{prefix}{n:04d}", ITEMS[n % len(ITEMS)], until)
        done.release()

    with ThreadPoolExecutor(4) as shoppers:
        placed = [shoppers.submit(order, n) for n in range(options.orders)]
        for _ in range(options.kills):
            for _ in range(max(1, options.orders // (options.kills + 1))):
                done.acquire(timeout=options.timeout)
            while not storm.strike():
                time.sleep(0.2)
        for one in placed:
            one.result()
    if not settings.RATES.exists():
        print("the exchange rates arrive: invoices go on", flush=True)
        part = settings.RATES.with_suffix(".part")
        part.write_text(json.dumps({"USD": 1.08, "GBP": 0.86}))
        part.replace(settings.RATES)
    while min(now := progress(prefix)) < options.orders and time.monotonic() < until:
        print(f"paid {now[0]}, invoices {now[1]} of {options.orders}", flush=True)
        time.sleep(1)
    ok = reconcile(prefix, options.orders, storm.kills)
    print(f"\nThe story of each order: {options.url}/admin/", flush=True)
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
