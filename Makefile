# The commands of this project; `make` alone lists them. The first one that needs it makes .venv from
# requirements/dev.lock, later ones find it ready.

VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
UV_VERSION := 0.13.9

# The first of these that runs and is new enough; `make PYTHON=... <target>` overrides it.
PYTHON ?= $(shell for each in python3.11 python3.12 python3.13 python3; do \
  if $$each -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then echo $$each; break; fi; done)

# An interpreter that is not on this machine is an error, nothing to be downloaded.
export UV_PYTHON_DOWNLOADS := never

# Each of the many processes that are started imports Airflow: twice as long where nobody may keep what is compiled.
export PYTHONDONTWRITEBYTECODE :=

# The tests wait for processes most of the time, so several run at once; tests/workers.py tells which ones may not.
WORKERS ?= 2
TESTS := $(PY) -m pytest -n $(WORKERS)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test quick soak lint bench mutants docs shots lock clean

help:  ## List the commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-7s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(READY)  ## Copy two real APIs into Postgres with Airflow while they change, and prove it (KEEP=1: leave all running)
	@$(PY) -m demo.run $(if $(KEEP),--keep) $(if $(SMALL),--small)

test: lint  ## Everything that must be true
	$(TESTS)

quick: lint  ## The same in a few minutes: without Airflow's processes and what else takes long
	$(TESTS) -m "not e2e and not slow"

soak: $(READY)  ## The properties and the crashes, for hours
	EXTRACT_SOAK=1 $(PY) -m pytest --timeout=0 tests/properties tests/crash tests/exactly_once tests/store tests/kinto \
	  tests/faults tests/webhooks tests/hashes

lint: $(READY)  ## Style, types, layers
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports

bench: $(READY)  ## The project's own measurements
	@for each in benchmarks/*.py; do echo "== $$each"; $(PY) $$each || exit 1; done

mutants: $(READY)  ## Break the laws one line at a time: each must turn the tests red
	@$(PY) -m tests.mutants

docs: $(READY)  ## Write docs/reference.md anew, from the models, commands and errors
	@$(PY) -m tests.layout.reference --write

shots: $(READY)  ## Take the pictures of Airflow's UI in docs/shots anew (needs Chromium, on PATH or by CHROMIUM=...)
	@$(VENV)/bin/uv pip install -q --python $(PY) --require-hashes -r requirements/shots.lock
	@$(PY) -m demo.shots

lock: $(READY)  ## Choose versions anew within pyproject.toml; UPGRADE=1 takes the newest
	$(VENV)/bin/uv pip compile -q --universal --python-version 3.11 --no-emit-index-url --generate-hashes \
	  --no-header --no-annotate --extra dev $(if $(UPGRADE),--upgrade) -o requirements/dev.lock pyproject.toml
	$(VENV)/bin/uv pip compile -q --universal --python-version 3.11 --no-emit-index-url --generate-hashes \
	  --no-header --no-annotate --group shots $(if $(UPGRADE),--upgrade) -c requirements/dev.lock -o requirements/shots.lock

clean:  ## Remove the environment, data of the demo and the tests, caches
	rm -rf $(VENV) .run .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --no-build-isolation: otherwise the build backend would be fetched unpinned, beside the lock.
$(READY): requirements/dev.lock pyproject.toml | $(PY)
	@echo "installing into $(VENV)"
	@test -x $(VENV)/bin/uv || $(PY) -m pip install -q --disable-pip-version-check uv==$(UV_VERSION)
	@$(VENV)/bin/uv pip sync -q --python $(PY) --require-hashes requirements/dev.lock
	@$(VENV)/bin/uv pip install -q --python $(PY) --no-deps --no-build-isolation -e .
	@touch $@

$(PY):
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed (make PYTHON=/path/to/python3.11 ...)"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "on Debian and Ubuntu: apt install python3-venv"; exit 1; }
