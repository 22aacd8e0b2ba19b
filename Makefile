# Every target makes the virtual environment it needs; PYTHON chooses the interpreter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test lint bench soak clean

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[test,lint,bench]"
	touch $(INSTALLED)

demo: $(INSTALLED)  ## Three nodes of the shop in testproject/, with data in it. Ctrl-C stops them.
	$(BIN)/python testproject/manage.py runcluster --nodes 3 --dir .raftsqlite --migrate --run "seed --admin admin"

test: $(INSTALLED)  ## All tests, with a short slice of the soaks (under 12 minutes).
	$(BIN)/python -m pytest

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(INSTALLED)  ## sqlite3, one node and three nodes, side by side.
	$(BIN)/python -m benchmarks.bench

soak: $(INSTALLED)  ## The process tests under faults, for longer (RAFTSQLITE_SOAK_SECONDS each).
	RAFTSQLITE_SOAK_SECONDS=$${RAFTSQLITE_SOAK_SECONDS:-60} $(BIN)/python -m pytest tests/process tests/cluster --timeout 1800

clean:
	rm -rf $(VENV) .raftsqlite .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache
