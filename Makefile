# `make` lists the targets. Each one sets up what it needs; Python and make are all that must be there.

PYTHON ?= python3
WORKERS ?= 3
MINUTES ?= 2
SEED ?=
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
BASE := $(VENV)/.stamp-base
DEV := $(VENV)/.stamp-dev

DJANGO ?= 4.2
OTHER := .venv-django-$(DJANGO)

export PIP_DISABLE_PIP_VERSION_CHECK := 1

# The pins are for Python 3.11 and later: some of these versions have left 3.10 behind.
PINS = $(shell $(BIN)/python -c 'import sys; print("-c constraints.txt" if sys.version_info >= (3, 11) else "")')
INSTALL = $(BIN)/python -m pip install --quiet $(PINS)

# A demo on other servers needs their drivers: `make demo ARGS="--broker redis://... --ledger postgresql+psycopg://..."`
comma := ,
space := $(subst ,, )
EXTRAS = $(subst $(space),$(comma),$(strip $(foreach name,redis postgres mysql,$(findstring $(name),$(ARGS)))))

.PHONY: help venv servers check format test django slow matrix crash smoke soak bench pains demo clean
.DELETE_ON_ERROR:

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 16

venv: $(DEV)  ## .venv with the package and its development tools

servers: $(DEV)  ## the servers that tests use, where they can be installed
	@PYTHON=$(BIN)/python tests/services/ensure.sh

check: $(DEV)  ## lint, formatting, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(DEV)  ## repair what lint and formatting can repair
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: servers  ## the tests, on real servers; the crash matrix in small (ARGS= for pytest, WORKERS= processes)
	$(BIN)/python -m pytest tests -n $(WORKERS) --dist loadgroup -m "matrix or not slow" $(ARGS)

django: servers  ## tests/django on another Django (DJANGO=4.2), in an environment of its own
	@test -x $(OTHER)/bin/pip || $(BIN)/python -m venv $(OTHER)
	@grep -v '^Django==' constraints.txt >$(OTHER)/constraints.txt
	$(OTHER)/bin/python -m pip install --quiet $(if $(PINS),-c $(OTHER)/constraints.txt) -e '.[dev]' 'Django==$(DJANGO).*'
	$(OTHER)/bin/python -m pytest tests/django -n $(WORKERS) --dist loadgroup -m "not slow" $(ARGS)

slow: servers  ## the tests that take minutes each: a million rows
	$(BIN)/python -m pytest tests -m "slow and not (matrix or crash)" $(ARGS)

matrix: servers  ## the crash matrix in full size
	DURABLE_MATRIX=full $(BIN)/python -m pytest tests/crash -m matrix $(ARGS)

crash: servers  ## every failpoint x action x ledger x broker, every system call: a strike at each, nothing lost or doubled
	$(BIN)/python -m pytest tests/points tests/sweep -n $(WORKERS) --dist loadgroup -m crash $(ARGS)

smoke: servers  ## durable tasks on pytest-celery, on local processes where there is no Docker engine
	$(BIN)/python -m pytest tests/smoke -n $(WORKERS) $(ARGS)

soak: $(DEV)  ## a storm of kills, cuts, crashes (MINUTES=2 SEED= ARGS="--pairs .. --sides durable,stock --picture F"); root
	@PYTHON=$(BIN)/python tests/services/ensure.sh ip iproute2 nft nftables faketime faketime
	@$(BIN)/python -m tests.soak --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(ARGS)

bench: servers  ## speed and cost against stock Celery, ten minutes (ARGS="drain --rounds 9" for a single one)
	$(BIN)/python -m benchmarks $(ARGS)

pains: servers  ## 17 things that users of Celery lose, each with a stock task and with ours (ARGS=--json, --write, rows)
	@$(BIN)/python -m tests.pains $(ARGS)

demo: $(BASE)  ## kill workers while they charge orders, then reconcile (ARGS= for the demo)
	$(if $(EXTRAS),@$(INSTALL) -e '.[$(EXTRAS)]')
	@$(BIN)/python examples/quickstart/demo.py $(ARGS)

clean:  ## remove what was built and cached; .venv stays
	rm -rf build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests examples -name __pycache__ -type d -prune -exec rm -rf {} +

# Debian ships Python without ensurepip: its venv fails half-way, and leaves a folder without pip.
$(BIN)/pip:
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy python3-venv && \
	    $(PYTHON) -m venv $(VENV); \
	  else echo "Python has no venv: install it (Debian: apt-get install python3-venv)" >&2; exit 1; fi; }

$(BASE): pyproject.toml constraints.txt | $(BIN)/pip
	$(INSTALL) -e .
	@touch $@

$(DEV): pyproject.toml constraints.txt | $(BIN)/pip
	$(INSTALL) -e '.[dev]'
	@touch $(BASE) $@
