# What a person types. Everything runs in .venv, which is built from requirements.lock by the first target that needs it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The default of OpenMP collapses when the cores are shared (tests, children, a daemon beside them).
export OMP_WAIT_POLICY := PASSIVE
export TOKENIZERS_PARALLELISM := false

.PHONY: venv demo test test-all crash powercut mutants locks bench lint clean

venv: $(VENV)/.made

$(VENV)/.made: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

demo: venv
	$(BIN)/python -m daemon.demo

test: venv
	$(BIN)/python -m pytest -m "not sweep"

test-all: venv
	$(BIN)/python -m pytest

# What docs/RELIABILITY.md tells of, part by part; all of it is in test-all.
crash: venv
	$(BIN)/python -m pytest tests/test_daemon_crash.py tests/test_daemon_points.py tests/test_daemon_killed.py \
		tests/test_daemon_powercut.py tests/test_daemon_faults.py tests/test_daemon_crash_repairs.py tests/test_daemon_proof.py

powercut: venv
	$(BIN)/python -m pytest -rs tests/test_daemon_powercut_ext4.py

mutants: venv
	$(BIN)/python -m pytest tests/test_daemon_mutants.py

locks: venv
	$(BIN)/python -m pytest tests/test_guard_home_lock.py tests/test_guard_lock_holders.py

bench: venv
	$(BIN)/python -m benchmarks.run

lint: venv
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf build *.egg-info .mypy_cache .ruff_cache
