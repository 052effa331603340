# What a person types. Everything runs in .venv, which is built from requirements.lock by the first target that needs it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The default of OpenMP collapses when the cores are shared (tests, children, a daemon beside them).
export OMP_WAIT_POLICY := PASSIVE
export TOKENIZERS_PARALLELISM := false
# Without byte code every run rewrites and compiles all tests (15 s), and each child all of our modules.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: venv demo test test-all crash powercut mutants locks corruption vault keeping scale bench lint clean

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

corruption: venv
	$(BIN)/python -m pytest tests/test_guard_corruption.py tests/test_guard_rebuild.py tests/test_guard_event_export.py \
		tests/test_guard_scrub.py tests/test_guard_verify.py tests/test_guard_verify_data.py tests/test_daemon_remake.py

vault: venv
	$(BIN)/python -m pytest tests/test_guard_frames.py tests/test_guard_vault.py tests/test_guard_vault_mending.py \
		tests/test_guard_vault_frames.py tests/test_daemon_drill.py tests/test_daemon_drill_runner.py

keeping: venv
	$(BIN)/python -m pytest tests/test_guard_deletion.py tests/test_guard_trash.py tests/test_guard_restore.py \
		tests/test_guard_purge.py tests/test_guard_retention.py tests/test_guard_archive.py tests/test_guard_seal.py \
		tests/test_daemon_regrow.py tests/test_daemon_cli_keeping.py

scale: venv
	$(BIN)/python -m pytest tests/test_guard_scale.py
	$(BIN)/python -m benchmarks.run --only scale

bench: venv
	$(BIN)/python -m benchmarks.run

lint: venv
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf build *.egg-info .mypy_cache .ruff_cache
