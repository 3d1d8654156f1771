# The environment is .venv, made from pyproject.toml under constraints.txt.
# flash-attn needs a CUDA compiler: `.venv/bin/pip install -c constraints.txt -e .[flash]`.
PYTHON ?= python3.11
BIN := .venv/bin
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: run test test-all check bench clean

run: .venv/installed
	@if [ -e runs/tiny ]; then mv runs/tiny "runs/tiny-$$(date +%Y%m%d-%H%M%S)"; fi
	$(BIN)/python -m autotune.run --space tiny --out runs/tiny

test: .venv/installed-dev
	$(BIN)/python -m pytest -m "not slow and not gpu"

test-all: .venv/installed-dev
	$(BIN)/python -m pytest -m "not gpu"

check: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/installed
	$(BIN)/python -m benchmarks.trials

clean:
	rm -rf .venv build *.egg-info

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@
