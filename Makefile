# Every target makes .venv (or VENV) first; nothing is launched from anywhere else.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CONFIG ?= pipelines.yaml

SEED ?=
CRAWL ?=
OUT ?=
PIPELINE ?= default
RECIPE ?= tiny
SHARDS ?= $(if $(SELECT),,runs/curate/latest/shards)
SELECT ?=
NPROC ?= 1
ROUNDS ?= 2
TESTERS ?= 3
ARGS ?=

.PHONY: setup demo curate train loop test test-fast lint gpu-check proof clean
.DEFAULT_GOAL := help

help:
	@echo "make demo     the first minute: curate a made-up crawl, train on it, see what came of it"
	@echo "make test     run the tests [TESTERS=3 processes]"
	@echo "make test-fast [PYTHON=python3.13 VENV=.venv-3.13]  those that tell one Python from another"
	@echo "make curate SEED=imagenet22k [CRAWL=... OUT=... PIPELINE=default ARGS='--set key=value']"
	@echo "              SEED and CRAWL: datasets of pipelines.yaml, or paths; OUT: where the result goes"
	@echo "make train [RECIPE=tiny SHARDS=... OUT=... NPROC=1 ARGS='--set key=value']"
	@echo "              RECIPE: one of pipelines.yaml; SHARDS: by default those of the last make curate,"
	@echo "              none (SHARDS=) for a recipe with data.mix; SELECT: a selection list of them;"
	@echo "              CONTINUE_FROM=run for RECIPE=...-highres, TEACHER=run or model for ...-distilled"
	@echo "make loop [ROUNDS=2 CRAWL=... SEED=... RECIPE=tiny NPROC=1 OUT=... ARGS='--curate-set key=value']"
	@echo "              curate, train, and curate with that model; on the built-in sample unless you name data"
	@echo "make gpu-check [OUT=... ARGS='--minutes 6']  measure both stages on this machine's card"
	@echo "make proof DATA=tiny-imagenet [OUT=... ARGS=--quick or --loop]  does curation help? trains on what each step keeps"
	@echo "make lint     ruff, the import contracts, and mypy"
	@echo "make setup    only make .venv;  make clean  remove it, and runs/"

# uv comes from PATH, or is installed there by the Python that made it.
$(VENV)/installed: pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "make: no $(PYTHON) on PATH: install Python 3.11, 3.12, 3.13 or 3.14, or name one: make PYTHON=python3.12"; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 15))' || { echo "make: $(PYTHON) is not Python 3.11 to 3.14: name one: make PYTHON=python3.12"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@uv=$$(command -v uv || true); \
	if [ -z "$$uv" ]; then $(BIN)/python -m pip install --quiet --disable-pip-version-check uv && uv=$(BIN)/uv; fi; \
	echo "installing into $(VENV) (seconds from uv's cache, else gigabytes to fetch)"; \
	$$uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'
	@touch $@

setup: $(VENV)/installed

demo: setup
	@$(BIN)/lvd-curate demo --config '$(CONFIG)' $(ARGS)

curate: setup
	@$(BIN)/lvd-curate run --config '$(CONFIG)' --pipeline '$(PIPELINE)' $(if $(SEED),--seed '$(SEED)') $(if $(CRAWL),--crawl '$(CRAWL)') $(if $(OUT),--out '$(OUT)') $(ARGS)

# One process, or torchrun with NPROC of them (one for each GPU), which have ten minutes to save when
# they are told to stop; by itself torchrun kills them after 30 seconds.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT ?= 600
LAUNCH = $(if $(filter 1,$(NPROC)),$(BIN)/lvd-train,$(BIN)/torchrun --nproc-per-node '$(NPROC)' -m train.launch)

train: setup
ifeq ($(origin SHARDS)$(SELECT),file)
	@test -e '$(SHARDS)' || { echo "make train: no shards at $(SHARDS): run make demo or make curate first, or say SHARDS=..."; exit 2; }
endif
	@$(LAUNCH) run --config '$(CONFIG)' --recipe '$(RECIPE)' $(if $(SHARDS),--shards '$(SHARDS)') $(if $(SELECT),--select '$(SELECT)') --out '$(or $(OUT),runs/train/$(RECIPE))' $(ARGS)

# Without a word on data, the loop runs on the built-in sample.
LOOPED = $(if $(filter file,$(origin PIPELINE)),$(if $(CRAWL)$(SEED),$(PIPELINE),sample),$(PIPELINE))

loop: setup
	@$(BIN)/lvd-curate loop --rounds '$(ROUNDS)' --config '$(CONFIG)' --pipeline '$(LOOPED)' $(if $(SEED),--seed '$(SEED)') $(if $(CRAWL),--crawl '$(CRAWL)') --recipe '$(RECIPE)' --nproc '$(NPROC)' $(if $(OUT),--out '$(OUT)') $(ARGS)

lint: setup
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/lint-imports && $(BIN)/mypy --no-incremental

# Some hours; the same call goes on where it was cut off. DATA is the folder of Tiny-ImageNet's tars. ARGS=--quick needs no data.
proof: setup
	@$(BIN)/python -m benchmarks.proof $(if $(DATA),--data '$(DATA)') --out '$(or $(OUT),runs/proof)' $(ARGS)

# benchmarks/gpu.sh by itself takes any Python with torch, torchvision and timm.
gpu-check: $(if $(wildcard $(BIN)/python),,setup)
	@PYTHON='$(BIN)/python' benchmarks/gpu.sh --out '$(or $(OUT),runs/gpu)' $(ARGS)

# The tests' many small files are in memory, where there is room for them.
MEMORY = $(shell test -w /dev/shm && df --output=avail -k /dev/shm | awk 'END { if ($$1 > 8 * 2^20) print "/dev/shm" }')

test: setup
	@export TMPDIR=$$(mktemp -d $(MEMORY:%=--tmpdir=%)) && trap 'rm -rf "$$TMPDIR"' EXIT && \
	env -u PYTHONDONTWRITEBYTECODE OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses '$(TESTERS)' --dist loadfile --no-loadscope-reorder

# What reads files, images and settings, the searches, one whole run, and steps of training.
FAST = tests/shared tests/curate/test_collection.py tests/curate/test_content.py \
	tests/curate/test_groups.py tests/curate/test_quality.py tests/curate/test_retrieve.py \
	tests/curate/test_search.py tests/curate/test_select.py tests/train/test_step.py
SLOW = tests/shared/embedders/test_bundled.py tests/shared/embedders/test_embedders.py \
  tests/shared/shard_folder/test_shards.py

test-fast: setup
	@OMP_NUM_THREADS=1 $(BIN)/pytest $(FAST) $(SLOW:%=--ignore %)
	@out=$$(mktemp -d) && trap 'rm -rf "$$out"' EXIT && \
	$(BIN)/lvd-curate run --config '$(CONFIG)' --pipeline sample --executor inline --work "$$out/work" --out "$$out/out" >/dev/null

clean:
	rm -rf .venv .venv-* runs build *.egg-info
