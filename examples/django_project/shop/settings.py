"""Settings of the shop: SQLite and a broker of files, or what SHOP_DATABASE and SHOP_BROKER say."""

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

import django
from celery.beat import BeatLazyFunc
from celery.schedules import crontab

from shop.clock import today

BASE_DIR = Path(__file__).resolve().parent.parent
#: Everything that the shop writes: the database, messages, invoices, logs.
STATE = Path(os.environ.get("SHOP_STATE", BASE_DIR / "state")).resolve()
STATE.mkdir(parents=True, exist_ok=True)

SECRET_KEY = os.environ.get("SHOP_SECRET_KEY", "of an example that serves 127.0.0.1 alone, and nothing else")
DEBUG = True
ALLOWED_HOSTS = ["127.0.0.1", "localhost", "testserver"]
INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "celery_durable.contrib.django",  # the one line that brings the ledger: `manage.py migrate` makes its tables
    "orders",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
ROOT_URLCONF = "shop.urls"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
STATIC_URL = "static/"
USE_TZ = True
TIME_ZONE = "UTC"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"


def database(url: str) -> dict[str, object]:
    """Django's entry for ``postgresql://user:password@host:port/name``; a SQLite file where there is no URL."""
    if not url:
        # One writer at a time: take the lock when a transaction begins, and wait for it.
        options = {"timeout": 20}
        if django.VERSION >= (5, 1):  # an older one cannot; its transactions may find the database locked
            options |= {"transaction_mode": "IMMEDIATE", "init_command": "PRAGMA journal_mode=WAL"}
        return {"ENGINE": "django.db.backends.sqlite3", "NAME": STATE / "shop.db", "OPTIONS": options}
    parts = urlsplit(url)
    if parts.scheme not in {"postgres", "postgresql"}:
        raise ValueError(f"SHOP_DATABASE={url!r} is no postgresql:// URL; leave it out for SQLite.")
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": parts.path.lstrip("/"),
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": parts.hostname or "",
        "PORT": parts.port or "",
    }


DATABASES = {"default": database(os.environ.get("SHOP_DATABASE", ""))}

# --- Celery, in Django's way: CELERY_ and the name of the setting -----------------------------------------------------

CELERY_BROKER_URL = os.environ.get("SHOP_BROKER", "filesystem://")
if CELERY_BROKER_URL.startswith("filesystem:"):
    folders = {"data_folder_in": "messages", "data_folder_out": "messages", "control_folder": "control"}
    CELERY_BROKER_TRANSPORT_OPTIONS = {option: str(STATE / name) for option, name in folders.items()}
    CELERY_BROKER_TRANSPORT_OPTIONS["polling_interval"] = 0.2
    for name in set(folders.values()):
        (STATE / name).mkdir(exist_ok=True)
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_TASK_IGNORE_RESULT = True
CELERY_WORKER_HIJACK_ROOT_LOGGER = False

# The ledger is in Django's own database. This is the default, and only said because an example should say it.
CELERY_DURABLE_LEDGER_URL = "django://default"
# Impatient, so that whoever plays with the shop sees every recovery. The defaults (30 s) suit production.
CELERY_DURABLE_LEASE = 6
CELERY_DURABLE_REPUBLISH_AFTER = 4

CELERY_BEAT_SCHEDULE_FILENAME = str(STATE / "beat-schedule")
CELERY_BEAT_SCHEDULE = {
    # A key for each day: however many beats send it, however often, there is one report a day.
    "nightly report": {"task": "orders.report", "schedule": crontab(hour=0, minute=5), "args": (BeatLazyFunc(today),)},
}

# --- the shop ---------------------------------------------------------------------------------------------------------

GATEWAY = os.environ.get("SHOP_GATEWAY", "http://127.0.0.1:8085")
INVOICES = STATE / "invoices"
#: Invoices wait for this file, which the bank's system drops here every morning.
RATES = STATE / "inbox" / "rates.json"
for folder in INVOICES, RATES.parent:
    folder.mkdir(exist_ok=True)
