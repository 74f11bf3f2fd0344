.DEFAULT_GOAL := help
# The first Python of at least 3.11 that really runs; a version manager's shim may exist and not run.
PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.13 python3,$(shell $(p) -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $(p))))
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export PATH := $(CURDIR)/$(BIN):$(PATH)
export AWS_DEFAULT_REGION ?= us-east-1
export HF_HUB_OFFLINE ?= 1
export SAM_CLI_TELEMETRY ?= 0
export TOKENIZERS_PARALLELISM ?= false

SECONDS ?= 120
# Processes that share out the test modules; each computes with its share of the cores.
CORES := $(shell nproc 2>/dev/null || echo 2)
JOBS ?= $(shell echo $$(($(CORES) < 4 ? $(CORES) : 4)))
test coverage: export OMP_NUM_THREADS ?= $(shell echo $$(($(CORES) > $(JOBS) ? $(CORES) / $(JOBS) : 1)))

FAULTS := tests/statemachine/test_paths.py tests/functions/core/test_ladder.py \
  tests/functions/test_diagnose_failure.py tests/functions/test_report_job_state.py \
  tests/training_image/test_failure.py tests/training_image/test_checkpoint.py \
  tests/training_image/test_training_loop.py tests/training_image/test_stopping.py \
  tests/training_image/test_passes.py tests/training_image/test_unusable_bases.py tests/training_image/test_launch.py \
  tests/training_image/test_distributed.py tests/local/test_lifecycle.py \
  tests/functions/core/test_slots.py tests/functions/core/test_budget.py tests/functions/test_caps_and_slots.py \
  tests/local/sagemaker/test_fault_plan.py tests/faults

help: ## What each target does
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## Create .venv with everything, pinned by hash

$(STAMP): requirements/development.txt requirements/install.sh pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed and none is on PATH (make PYTHON=...)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	bash requirements/install.sh $(VENV)
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

demo: setup ## The whole run on this machine: a 135M model; FAST=1 takes a tiny one and a minute
ifdef FAST
	dropforge local run examples/us-addresses/addresses.jsonl --model us-addresses --fast
else
	dropforge local run examples/us-addresses --model us-addresses
endif

test: setup ## All tests; JOBS=1 runs them in one process
	pytest -m "not slow" -n $(JOBS) --dist loadfile

coverage: setup ## All tests, and which lines and branches they reach; takes half as long again
	pytest -m "not slow" -n $(JOBS) --dist loadfile --cov --cov-report=term

check: setup ## Lint, format, types, import contracts, template
	ruff check .
	ruff format --check .
	mypy
	lint-imports
	cfn-lint template.yaml
	sam validate --lint

faults: setup ## What goes wrong: every caught error, the ladder, kills, resumes, lost ends
	pytest $(FAULTS)

security: setup ## Security lints, and a look for credentials in what is tracked
	ruff check --select S functions dropforge training_image
	@! git grep -nE 'AKIA[0-9A-Z]{16}|xox[abprs]-[0-9]{8,}|hf_[A-Za-z0-9]{30,}|-----BEGIN [A-Z ]*PRIVATE KEY' -- . ':!Makefile' ':!tests/functions/core/dataset/corpus' \
	  || { echo "the lines above look like credentials"; exit 1; }

bench: setup ## Every benchmark, one JSON document each; QUICK=1 for two minutes each
	python -m pip install --quiet --no-deps --require-hashes -r requirements/bench.txt
	@set -e; for script in benchmarks/[a-z]*.py; do python $$script $(if $(QUICK),--quick) --json; done

fuzz: setup ## Planted faults, divisions and mutations ten times as long, then a search led by coverage; SECONDS=600
	python -m pip install --quiet --no-deps --require-hashes -r requirements/fuzz.txt
	DROPFORGE_EFFORT=10 pytest tests/functions/core/dataset/test_planted.py \
	  tests/functions/core/dataset/test_splits.py tests/functions/core/dataset/test_fuzz.py
	python tests/functions/core/dataset/fuzz.py --seconds $(SECONDS)

load: setup ## A burst of uploads: each ends once and is told once
	python benchmarks/load.py $(if $(QUICK),--quick)

schemas: setup ## Renew docs/schemas and the tables of fields from the contracts
	python -m dropforge.schemas docs

image: ## Build the training image and record its digest; needs Docker
	bash training_image/build.sh

lock: setup ## Renew the locks in requirements/
	bash requirements/lock.sh

clean: ## Remove what tools left behind; .venv and downloaded models stay
	rm -rf .aws-sam .coverage .coverage.* htmlcov .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

.PHONY: help setup demo test coverage check faults fuzz load security bench schemas image lock clean
