# `make demo` and `make test` need only Python 3.11+: the first target that runs creates .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-all test-faults test-fast lint format bench screenshots chaos clean

demo: $(INSTALLED)
	$(BIN)/mnist-ray demo --storage results

# Two test files at once, in the order of tests/conftest.py; each process uses one Ray head for all its tests.
PYTEST := $(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test: $(INSTALLED)
	$(PYTEST) -m "not series and not spark"

# Includes the series (repetitions and variants of tests of `make test`, lost nodes, an autoscaler), test-faults and
# Spark, which needs Java.
test-all: $(VENV)/.spark
	$(PYTEST)

# Only kills, lost nodes, failing networks, full disks and damaged checkpoints.
test-faults: $(INSTALLED)
	$(PYTEST) -m fault --durations 20

test-fast: $(INSTALLED)
	$(PYTEST) -m "not ray and not s3 and not slow and not gpu and not series and not spark"

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(INSTALLED)
	$(BIN)/python benchmarks/train_throughput.py
	$(BIN)/python benchmarks/evaluate_throughput.py
	$(BIN)/python benchmarks/stack.py
	$(BIN)/python benchmarks/grid.py
	$(BIN)/python benchmarks/report.py
	$(BIN)/python benchmarks/compare.py
	$(BIN)/python benchmarks/evaluate_scale.py
	$(BIN)/python benchmarks/publish.py
	$(BIN)/python benchmarks/ddp.py

# Needs Chromium.
screenshots: $(INSTALLED)
	$(BIN)/python docs/screenshots.py

# 50 kills on a disk and 50 on an S3 server while a reader loops; takes some minutes.
chaos: $(INSTALLED)
	$(BIN)/python -m tests.support.chaos --kills 50

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

# The stamp is written last: an interrupted installation restarts; a finished one is kept until pyproject.toml or
# constraints.txt changes.
$(INSTALLED): pyproject.toml constraints.txt
	rm -rf $(VENV)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mnist-ray needs Python 3.11 or newer, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

$(VENV)/.spark: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,spark]'
	touch $@
