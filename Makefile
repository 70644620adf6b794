# Every target is a command or two that one could type.  `make run` and `make test` need nothing
# but Python (3.11 or newer) and make; they set up .venv from constraints.txt, the tested versions.
#
#   make run ARGS="--source test --http tcp:9000"     any option of `twistd m32net`
#   make test TESTS=tests.protocols                    some of the tests

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt
ARGS   ?=
TESTS  ?= tests
export PYTHON

.PHONY: help run test check audit bench soak docs clean setup setup-test setup-check

help:
	@grep -E '^#( |$$)' Makefile | cut -c3-
	@echo "Targets: run test check audit bench soak docs clean"

run: setup
	$(BIN)/twistd -n m32net $(ARGS)

test: setup-test
	$(BIN)/python -m tests.run $(TESTS)

check: setup-check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/bandit -q -c pyproject.toml -r m32net protocols tools
	$(BIN)/python -m twisted.trial tests.test_architecture

# Known weaknesses of the versions in constraints.txt; asks a service on the Internet.
audit: setup-test
	$(BIN)/pip-audit --strict --no-deps --disable-pip -r constraints.txt

bench: setup-test
	$(BIN)/python -m benchmarks $(ARGS)

soak: setup-test
	M32NET_SOAK=1 $(BIN)/python -m tests.run $(TESTS)

docs: setup-test
	$(BIN)/python -m tests.support.diagrams

clean:
	rm -rf $(VENV) build dist *.egg-info _trial_temp* .hypothesis .mypy_cache .ruff_cache

setup: $(VENV)/run.done
setup-test: $(VENV)/test.done
setup-check: $(VENV)/check.done

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "m32net needs Python 3.11 or newer; try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@tools/system-packages run
	@$(PYTHON) -m venv $(VENV) || { echo "No virtual environment could be made; install python3-venv and run make again."; rm -rf $(VENV); exit 1; }

$(VENV)/run.done: setup.cfg constraints.txt | $(VENV)/bin/python
	@tools/system-packages run
	@echo "Setting up $(VENV) (once, about a minute) ..."
	@$(PIP) -U 'setuptools>=77' wheel
	@$(PIP) --no-build-isolation -e . --config-settings editable_mode=compat
	@touch $@

$(VENV)/test.done: $(VENV)/run.done
	@tools/system-packages run test
	@$(PIP) --no-build-isolation -e '.[test]' --config-settings editable_mode=compat
	@touch $@

$(VENV)/check.done: $(VENV)/test.done
	@$(PIP) --no-build-isolation -e '.[test,dev]' --config-settings editable_mode=compat
	@touch $@
