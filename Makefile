# What a person types. Everything runs in .venv, which is built from requirements.lock by the first target that needs it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The default of OpenMP collapses when the cores are shared (tests, children, a daemon beside them).
export OMP_WAIT_POLICY := PASSIVE
export TOKENIZERS_PARALLELISM := false

.PHONY: venv demo test test-all bench lint clean

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

bench: venv
	$(BIN)/python -m benchmarks.run

lint: venv
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf build *.egg-info .mypy_cache .ruff_cache
