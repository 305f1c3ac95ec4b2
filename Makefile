# Two commands do everything: `make demo` and `make test`. Each installs what it needs into .venv, once.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# Python compiles a module when it is first imported; compiling all of every package takes most of a minute.
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
OUT    ?= holdfast-out/demo

# The tests use small tensors: one thread per worker and a worker per core beats many threads.
WORKERS ?= auto

# Many tests start processes, each of which would compile everything again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test lint types layers check proofs test-slow test-cuda docs evidence bench clean help

help:  ## show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "%-12s %s\n", $$1, $$2}' Makefile

$(VENV)/.torch: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) "torch>=2.6,<2.14"
	@touch $@

$(VENV)/.core: $(VENV)/.torch
	$(PIP) --editable .
	@touch $@

$(VENV)/.test: $(VENV)/.torch
	$(PIP) --editable ".[test]"
	@touch $(VENV)/.core $@

$(VENV)/.docs: $(VENV)/.core
	$(PIP) --editable ".[docs]"
	@touch $@

$(VENV)/.bench: $(VENV)/.core
	$(PIP) --editable ".[bench]"
	@touch $@

demo: $(VENV)/.core  ## audit the bundled digits model on bundled real data
	$(BIN)/holdfast audit --model zoo:digits-convnet --data digits --profile quick --out $(OUT)

test: lint layers  ## lint, type-check, and run the fast tests
	$(MAKE) --no-print-directory --jobs=2 types check

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test
	$(BIN)/mypy

layers: $(VENV)/.test
	$(BIN)/lint-imports

check: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadgroup -m "not slow and not cuda"

proofs: $(VENV)/.test  ## the proofs at smoke scale that take too long for `make test`
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadgroup -m slow tests/proofs/test_smoke.py

test-slow: $(VENV)/.test  ## all long tests, these proofs among them
	$(BIN)/python -m pytest -q -m slow

test-cuda: $(VENV)/.test  ## the tests that need a GPU
	HOLDFAST_TEST_CUDA=1 $(BIN)/python -m pytest -q -m cuda

docs: $(VENV)/.docs  ## build the documentation site, strictly
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

evidence: $(VENV)/.core  ## rewrite docs/evidence.md from the ledger
	$(BIN)/python docs/generate.py

bench: $(VENV)/.bench  ## time holdfast against the peers
	for name in fit pgd square; do $(BIN)/python benchmarks/$$name.py || exit 1; done

clean:  ## remove everything made here
	rm -rf $(VENV) site .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
