# `make demo` and `make test` do everything on a fresh machine with Python 3.11 or later.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
REQUIREMENTS := requirements-dev.txt constraints-dev.txt examples/requirements.txt pyproject.toml $(wildcard plugins/*/pyproject.toml)

.PHONY: demo tweets test lint types unit coverage crash bench bench-peers clean

demo: $(VENV)/.installed
	$(BIN)/python examples/digits.py

tweets: $(VENV)/.installed
	$(BIN)/python examples/text_classification.py

test: lint types unit

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed
	$(BIN)/mypy

# A file's tests run on one worker: what they share is costly to set up.
PYTEST := $(BIN)/python -m pytest -q -n 2 --dist loadfile

unit: $(VENV)/.installed
	$(PYTEST)

# The same, with what of the code no test reaches; it takes a quarter longer.
coverage: $(VENV)/.installed
	$(PYTEST) --cov --cov-report=term

# The long form of tests/crash: about CRASH_ROUNDS rounds more of each kind.
CRASH_ROUNDS ?= 1000
crash: $(VENV)/.installed
	CRASH_ROUNDS=$(CRASH_ROUNDS) $(BIN)/python -m pytest -q -n 2 --timeout=0 tests/crash

bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks

bench-peers: $(VENV)/.installed-peers
	$(BIN)/python -m benchmarks --peers

# One pip call installs the core and all plugins, another what the examples read; the stamp keeps a second call from
# installing again.
$(VENV)/.installed: $(REQUIREMENTS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r examples/requirements.txt
	touch $@

$(VENV)/.installed-peers: $(VENV)/.installed benchmarks/requirements-peers.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r benchmarks/requirements-peers.txt
	touch $@

clean:
	rm -rf $(VENV) runs .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage
