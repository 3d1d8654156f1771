# The environment is .venv, made from pyproject.toml under constraints.txt.
# flash-attn needs a CUDA compiler: `.venv/bin/pip install -c constraints.txt -e .[flash]`.
PYTHON ?= python3.11
BIN := .venv/bin
export RAY_USAGE_STATS_ENABLED := 0

RUNS ?= ../shared/paper_runs

.PHONY: run test test-fast test-all faults soak check bench bench-gpu bench-recorded bench-published gpu-wheels docs site clean

# As for a long training run: a short one would end the search after a handful of trials.
run: .venv/installed
	@if [ -e runs/tiny ]; then mv runs/tiny "runs/tiny-$$(date +%Y%m%d-%H%M%S)"; fi
	$(BIN)/python -m autotune.run --space tiny --out runs/tiny --training-gpu-hours 10000

test: .venv/installed-dev
	$(BIN)/python -m pytest -m "not slow and not gpu"

# In less than a minute: what needs neither Ray nor torch.
FAST := tests/autotune tests/docs/test_pages.py
STARTS_RAY_OR_RANKS := tests/autotune/on_ray tests/autotune/test_run.py \
    tests/autotune/cost/test_measured_memory.py tests/autotune/trial/test_reduced.py
FITS := tests/autotune/calibration/test_fit.py
test-fast: export HYPOTHESIS_PROFILE := quick
test-fast: .venv/installed-dev
	$(BIN)/python -m pytest -p tests.without_ray_and_torch -m "not slow and not gpu" $(FAST) \
	    $(patsubst %,--ignore=%,$(STARTS_RAY_OR_RANKS) $(FITS))

# Also every further variant, and of generated examples more, others every time.
test-all: export HYPOTHESIS_PROFILE := random
test-all: .venv/installed-dev .venv/frameworks
	$(BIN)/python -m pytest -m "not gpu"

# Every fault, also those that take minutes; writes the table of docs/reliability.md.
faults: .venv/installed-dev
	FAULTS_TABLE=replace $(BIN)/python -m pytest tests/faults

soak: .venv/installed-dev
	$(BIN)/python benchmarks/soak.py

check: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/installed-dev .venv/peers
	$(BIN)/python -m benchmarks.trials
	$(BIN)/python benchmarks/planner_speed.py
	$(BIN)/python benchmarks/scale.py
	$(BIN)/python benchmarks/foreign_trainer.py

# One GPU in under nine minutes, or a CPU in half a minute; called again it goes on (docs/gpu.md).
bench-gpu: .venv/installed-dev
	$(BIN)/python benchmarks/gpu.py --out runs/gpu

# What the worker needs on a machine that has torch, but neither DeepSpeed nor a network.
GPU_PYTHON ?= 3.12
gpu-wheels: .venv/installed
	rm -rf wheels
	$(BIN)/pip wheel --quiet -c constraints.txt --no-deps --no-build-isolation -w wheels deepspeed
	$(BIN)/pip download --quiet -c constraints.txt --no-deps --only-binary=:all: -d wheels \
	    --python-version $(GPU_PYTHON) --platform manylinux_2_17_x86_64 \
	    annotated-types click hjson pydantic pydantic-core typing-inspection

# The recorded runs of Hagemann et al. 2023 (not ours to ship): RUNS is a file or a folder of them.
bench-recorded: .venv/installed
	$(BIN)/python benchmarks/cost_accuracy.py --runs $(RUNS)
	$(BIN)/python benchmarks/search_replay.py --runs $(RUNS)

# Training runs that others published: PUBLISHED is a CSV with the columns of
# autotune/calibration/published_runs.py.
PUBLISHED ?= ../shared/published_runs/published.csv
bench-published: .venv/installed-dev
	$(BIN)/python benchmarks/published.py --runs $(PUBLISHED)
	$(BIN)/python -m benchmarks.published_pictures --runs $(PUBLISHED) --out docs/results

# Pages and pictures that are made from the code.
docs: .venv/installed
	$(BIN)/python docs/make_schema.py
	$(BIN)/python docs/make_picture.py

# The pages as a site in SITE, without the network (mkdocs.yml); `python -m http.server --bind 127.0.0.1 -d build/site` shows it.
SITE ?= build/site
site: export NO_MKDOCS_2_WARNING := 1
site: .venv/installed-dev
	$(BIN)/python -m mkdocs build --strict --site-dir $(abspath $(SITE))

clean:
	rm -rf .venv build wheels *.egg-info

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

# Frameworks whose parsers read our exports (tests/frameworks). They ask for other versions of their
# dependencies than ours, and Megatron for Python 3.12; what reads configurations runs with these.
.venv/frameworks: .venv/installed-dev
	rm -rf $@.new
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
	    --python-version 3.12 --ignore-requires-python --target $@.new \
	    megatron-core==0.19.2 megatron-bridge==0.6.2
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target $@.new \
	    torchtitan==0.3.0 spmd_types==0.2.3 torch_checkpointing==0.1.1 torchdata==0.11.0 \
	    tyro==1.0.17 docstring_parser==0.18.0 typeguard==4.6.1 datasets==5.2.0 dill==0.4.1 \
	    multiprocess==0.70.19 xxhash==4.1.0 tensorboard==2.21.0 absl-py==2.5.1 triton==3.9.0 \
	    hydra-core==1.3.8 omegaconf==2.4.0 antlr4-python3-runtime==4.9.3
	mv $@.new $@

# llm-analysis asks for older versions of its dependencies than ours; it needs none of them here.
.venv/peers: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target $@ \
	    llm-analysis==0.2.2 fire==0.5.0 termcolor==3.1.0
