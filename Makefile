# Every target makes the virtual environment it needs; PYTHON chooses the interpreter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# The simulation's seeds depend on it: the order of sets.
export PYTHONHASHSEED ?= 0

.PHONY: demo test runbook lint docs package bench bench-snapshots bench-starts simulate soak django-slice django-suite django-baseline third-party clean

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[test,lint,docs,package,bench]"
	touch $(INSTALLED)

demo: $(INSTALLED)  ## Three nodes of the shop in testproject/, with data in it. Ctrl-C stops them.
	$(BIN)/python testproject/manage.py runcluster --nodes 3 --dir .raftsqlite --migrate --run "seed --admin admin"

test: $(INSTALLED)  ## All tests, JOBS=3 files at a time, with short slices of the soaks and of Django's own tests.
	$(BIN)/python -m pytest -m "not slice" --numprocesses $(or $(JOBS),3) --dist loadfile --no-loadscope-reorder

runbook: $(INSTALLED)  ## docs/runbook.md from top to bottom on loopback, all members moved: the longest pause of each step is printed.
	RAFTSQLITE_SOAK_SECONDS=60 $(BIN)/python -m pytest tests/process/test_runbook.py --quiet --capture=no

django-slice: $(INSTALLED)  ## A choice of Django's own tests, three ways, on Django 5.2 and 6.1.
	$(BIN)/python -m pytest tests/django_suite

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/hadolint deploy/docker/Dockerfile deploy/fly/Dockerfile

docs: $(INSTALLED)  ## The documentation, into docs/_build; any warning is an error.
	$(BIN)/python docs/generate_commands.py
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet --builder html docs docs/_build

package: $(INSTALLED)  ## Wheel and sdist into dist/, checked; the wheel is installed and used in an empty environment.
	rm -rf dist
	$(BIN)/python -m build --quiet
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/python -m tests.package dist

bench: $(INSTALLED)  ## sqlite3, PostgreSQL with two standbys, one node and three nodes, side by side.
	$(BIN)/python -m benchmarks.bench

bench-snapshots: $(INSTALLED)  ## A node that was away catches up under load: MEBIBYTES=1024 TRANSACTIONS=200000.
	$(BIN)/python -m benchmarks.snapshots --mebibytes $(or $(MEBIBYTES),1024) --transactions $(or $(TRANSACTIONS),200000)

bench-starts: $(INSTALLED)  ## How long a node takes to start: MEBIBYTES=1024 ENTRIES=1000000 behind it, and with nothing.
	$(BIN)/python -m benchmarks.starts --mebibytes $(or $(MEBIBYTES),1024) --entries $(or $(ENTRIES),1000000)

simulate: $(INSTALLED)  ## The deterministic simulation: SEEDS=5000 START=0 JOBS=2; SEED=17 TRACE=1 for one of them.
	$(BIN)/python -m tests.simulation $(if $(SEED),--seed $(SEED) $(if $(TRACE),--trace),\
	  --seeds $(or $(SEEDS),1000) --start $(or $(START),0) --jobs $(or $(JOBS),2))

soak: $(INSTALLED)  ## More seeds of the simulation (RAFTSQLITE_SOAK_SEEDS), then the process tests under faults, for longer (RAFTSQLITE_SOAK_SECONDS each).
	$(BIN)/python -m tests.simulation --seeds $${RAFTSQLITE_SOAK_SEEDS:-2000} --start $${RAFTSQLITE_SOAK_START:-100000} --jobs 2
	RAFTSQLITE_SOAK_SECONDS=$${RAFTSQLITE_SOAK_SECONDS:-60} $(BIN)/python -m pytest tests/process tests/cluster tests/fuzz tests/simulation/test_distances.py --timeout 1800

DJANGO ?= 6.1
SUITE = $(BIN)/python -m tests.django_suite --django $(DJANGO) $(if $(SUITE_PYTHON),--python $(SUITE_PYTHON))

django-suite: $(INSTALLED)  ## Django's own tests on this backend: DJANGO=5.2 LABELS="queries" NODES=3 ATTACHED=1 PARALLEL=2 RATIO=1
	$(SUITE) $(if $(LABELS),--labels "$(LABELS)") --nodes $(or $(NODES),1) --parallel $(or $(PARALLEL),1) \
	  $(if $(ATTACHED),--attached) $(if $(RATIO),--ratio)

django-baseline: $(INSTALLED)  ## Run them on django.db.backends.sqlite3 and keep the result, which django-suite compares with.
	$(SUITE) --baseline --refresh --parallel $(or $(PARALLEL),1)

third-party: $(INSTALLED)  ## The tests of Django REST framework and django-filter, on sqlite3 and on this backend.
	$(BIN)/python -m tests.django_suite.third_party

clean:
	rm -rf $(VENV) .raftsqlite .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache docs/_build dist
