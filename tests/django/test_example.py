"""The example project does what its README says: crash tests, and orders over HTTP while its processes are killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.waiting import wait_until

SHOP = Path(__file__).parents[2] / "examples" / "django_project"


@pytest.fixture
def environ(tmp_path):
    """The environment of the shop's commands, with all its files in a folder of the test."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SHOP_", "CELERY_", "DJANGO_"))}
    return kept | {"SHOP_STATE": str(tmp_path / "state"), "no_proxy": "127.0.0.1"}


def call(environ, *words, timeout=280):
    done = subprocess.run(
        [sys.executable, *words], cwd=SHOP, env=environ, capture_output=True, text=True, timeout=timeout, check=False
    )
    print(done.stdout[-6000:], done.stderr[-4000:])
    return done


@pytest.fixture
def shop(environ):
    """Starts the shop and returns its address."""
    started = []

    def start():
        port, gateway = _free_ports()
        command = [sys.executable, "run.py", "--port", port, "--gateway-port", gateway]
        started.append(subprocess.Popen(command, cwd=SHOP, env=environ))
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: _answers(url), timeout=60, message="the shop does not answer")
        return url

    yield start
    for process in started:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)


def _free_ports():
    """Two ports that are free now."""
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1]), str(other.getsockname()[1])


def _answers(url):
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - the shop's own
            return answer.status == 200
    except OSError:
        return False


def test_its_own_tests_pass(environ):
    assert call(environ, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:timeout", "tests").returncode == 0


def test_its_migrations_are_complete(environ):
    assert call(environ, "manage.py", "makemigrations", "--check", "--dry-run").returncode == 0


def test_checks_leave_the_app_as_it_was(environ):
    """They import its tasks, upon which Celery has Django's checks run; and they freeze no setting."""
    script = (
        "import django; django.setup()\n"
        "from celery import current_app\n"
        "from django.core.checks import run_checks\n"
        "assert {m.id for m in run_checks()} <= {'celery_durable.W022'}\n"  # SQLite before Django 5.1
        "assert {'orders.pay', 'orders.invoice', 'orders.report'} <= set(current_app.tasks)\n"
        "assert '_durable_plugin' not in vars(current_app._get_current_object())\n"
    )
    environ |= {"DJANGO_SETTINGS_MODULE": "shop.settings"}
    done = call(environ, "-c", script)
    assert (done.returncode, done.stderr) == (0, "")


def test_each_order_is_paid_once_while_processes_are_killed(environ, shop, seed):
    assert call(environ, "manage.py", "migrate", "--verbosity", "0").returncode == 0
    url = shop()
    done = call(environ, "storm.py", "--url", url, "--orders", "40", "--kills", "6", "--seed", str(seed))
    assert done.returncode == 0
    assert "charged         40, 0 twice" in done.stdout


@pytest.mark.slow
def test_the_same_on_postgresql_and_redis(environ, shop, seed, postgres_server, redis_server):
    told = sa.make_url(postgres_server.database()).set(drivername="postgresql")
    environ |= {"SHOP_DATABASE": told.render_as_string(hide_password=False), "SHOP_BROKER": redis_server.db()}
    assert call(environ, "manage.py", "migrate", "--verbosity", "0").returncode == 0
    url = shop()
    done = call(environ, "storm.py", "--url", url, "--orders", "200", "--kills", "20", "--seed", str(seed))
    assert done.returncode == 0
    assert "charged         200, 0 twice" in done.stdout
