# Everything here does its own set-up: python3, pip and make on a fresh machine are enough.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: setup demo check fix test slow faults bench

setup: .venv/run

.venv/run: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) -e '.[faces]'
	touch $@

.venv/dev: .venv/run
	$(PIP) -e '.[dev,faces]'
	touch $@

demo: .venv/run
	$(BIN)/calotype demo demo

# What CI runs.
check: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(MAKE) test

fix: .venv/dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test: .venv/dev
	$(BIN)/pytest

# Minutes long, by hand: servers, S3, long trainings.
slow: .venv/dev
	$(BIN)/pytest -m slow

faults: .venv/dev
	$(BIN)/pytest tests/faults

bench: .venv/dev
	$(BIN)/python -m benchmarks.overhead
	$(BIN)/python -m benchmarks.row_cost
	$(BIN)/python -m benchmarks.reference_cache
	$(BIN)/python -m benchmarks.manifest_scale
	$(BIN)/python -m benchmarks.sampling
	$(BIN)/python -m benchmarks.layouts
	$(BIN)/python -m benchmarks.edits
	$(BIN)/python -m benchmarks.translators
	$(BIN)/python -m benchmarks.concepts
	$(BIN)/python -m benchmarks.adapters
