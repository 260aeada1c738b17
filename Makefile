# Two commands do it all on a fresh machine with Python 3.11+ and make:
#   make demo   install, start the proxy with its embedded models, print a URL and a curl line
#   make test   install, run everything CI runs
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# vLLM needs an environment of its own; VLLM_REQUIRED=1 makes it an error that a machine has none.
VENV_VLLM  := .venv-vllm
STAMP_VLLM := $(VENV_VLLM)/.installed
# So does training with TRL and DeepSpeed; TRAINING_REQUIRED=1 makes it an error to have none.
VENV_TRAIN  := .venv-train
STAMP_TRAIN := $(VENV_TRAIN)/.installed
# Helm's engine, for the tests of the chart; HELM_REQUIRED=1 makes it an error to have none.
HELM       := .helm
STAMP_HELM := $(HELM)/.installed
# The openai package for Node, for a test; NODE_REQUIRED=1 makes it an error to have none.
NODE       := tests/e2e/node
STAMP_NODE := $(NODE)/node_modules/.installed
PORT   ?= 8000
# How many tests, and how many builds and installs, run side by side.
JOBS   ?= $(shell nproc 2>/dev/null || echo 1)
WAITING = $(shell expr $(JOBS) + 1)
# How often a test that failed is tried again. CI says 1, for a machine that others use, too, and that
# stands still for a second now and then; it names the tests that needed it.
RERUNS ?= 0
PYTEST  = python -m pytest --reruns $(RERUNS) -r fExXsR
# Whether several environments may be made in one run of make. One at a time then: each of them
# builds this package's metadata in the source tree.
MANY    = $(filter prepare parts,$(MAKECMDGOALS))

.PHONY: help install demo test prepare parts check unit vllm node helm training-tests train bench demo-models format clean

help:           ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## */\t/' | expand -t 14

install: $(STAMP) ## make .venv with all that demo and test need

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

# The stamp lives in the venv, so removing the venv is enough to start over.
$(STAMP): pyproject.toml constraints.txt tests/install.py | $(BIN)/python
	@echo "Installing into $(VENV): a minute or so where nothing has been downloaded yet."
	$(BIN)/python -m tests.install $(VENV) -c constraints.txt -e '.[dev]'
	touch $@

demo: $(STAMP)  ## start the proxy with its embedded tiny upstream and tiny aligner
	$(BIN)/stream-aligner demo --port $(PORT)

# One stage after another, each with its time. What waits for a network, and what each has servers
# of its own, goes side by side; its output then comes when it is done.
test:           ## install, run everything CI runs
	@for stage in "-j$(WAITING) -Otarget prepare" unit "-j$(JOBS) -Otarget vllm training-tests"; do \
	    echo "== $$stage ($$(date -u +%T))"; \
	    $(MAKE) --no-print-directory $$stage || exit 1; \
	done; echo "== done ($$(date -u +%T))"

prepare: check parts

parts: $(STAMP) node helm $(STAMP_VLLM) $(STAMP_TRAIN) ## what tests need beside .venv: servers, other environments

check: $(STAMP) ## format, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: $(STAMP)  ## the tests alone
	$(BIN)/$(PYTEST) -n $(JOBS) --dist loadfile

# Status 3 of the script: this machine cannot have vLLM, and it has said why.
$(STAMP_VLLM): tests/vllm/install.py constraints-vllm.txt pyproject.toml | $(if $(MANY),$(STAMP))
	$(PYTHON) -m tests.vllm.install $(VENV_VLLM) && touch $@ || \
	    { status=$$?; rm -f $@; [ $$status = 3 ] && [ -z "$(VLLM_REQUIRED)" ]; }

vllm: $(STAMP_VLLM) ## the tests against real vLLM on the CPU, in .venv-vllm
	@if [ -e $(STAMP_VLLM) ]; then $(VENV_VLLM)/bin/$(PYTEST) tests/vllm; \
	else echo "tests/vllm: skipped, there is no vLLM here"; fi

# Status 3 of the script: this machine cannot have it, and it has said why.
$(STAMP_TRAIN): tests/training/install.py constraints-training.txt pyproject.toml | $(if $(MANY),$(STAMP_VLLM))
	$(PYTHON) -m tests.training.install $(VENV_TRAIN) && touch $@ || \
	    { status=$$?; rm -f $@; [ $$status = 3 ] && [ -z "$(TRAINING_REQUIRED)" ]; }

training-tests: $(STAMP_TRAIN) ## the tests of training with TRL and DeepSpeed, in .venv-train
	@if [ -e $(STAMP_TRAIN) ]; then $(VENV_TRAIN)/bin/$(PYTEST) tests/training/test_recipe_*.py tests/training/test_preference.py tests/training/test_data_hub.py; \
	else echo "tests of training with TRL and DeepSpeed: skipped, they are not here"; fi

train: $(STAMP_TRAIN) ## train an aligner for the demo world, measure it, say how to serve it (minutes)
	@[ -e $(STAMP_TRAIN) ] || { echo "make train: TRL and DeepSpeed cannot be installed here"; exit 1; }
	$(VENV_TRAIN)/bin/python -m training.demo_aligner --out runs/demo-aligner

$(STAMP_NODE): $(NODE)/package.json $(NODE)/package-lock.json
	@if command -v npm >/dev/null; then cd $(NODE) && npm ci --silent --ignore-scripts --no-audit --no-fund && touch node_modules/.installed; \
	else echo "node: skipped, there is no npm here"; [ -z "$(NODE_REQUIRED)" ]; fi

node: $(STAMP_NODE) ## the openai package for Node, which a test is a client of

# Status 3 of the script: this machine cannot have it, and it has said why.
$(STAMP_HELM): tests/deploy/install_helm.py | $(BIN)/python
	$(BIN)/python tests/deploy/install_helm.py $(HELM) && touch $@ || \
	    { status=$$?; rm -f $@; [ $$status = 3 ] && [ -z "$(HELM_REQUIRED)" ]; }

helm: $(STAMP_HELM) ## Helm's engine, which renders the chart for the tests

bench: $(STAMP) ## every benchmark: tables on the screen, JSON in bench/results
	$(BIN)/python -m bench.splitter
	$(BIN)/python -m bench.early_review
	$(BIN)/python -m bench.stream
	$(BIN)/python -m bench.policies
	$(BIN)/python -m bench.transparency
	$(BIN)/python -m bench.demo_accuracy
	$(BIN)/python -m bench.induction
	$(BIN)/python -m bench.reopening
	$(BIN)/python -m bench.continuation
	$(BIN)/python -m bench.upstreams_page
	$(BIN)/python -m bench.clients
	$(BIN)/python -m bench.gateway
	$(BIN)/python -m bench.load
	$(BIN)/python -m bench.faults --seed 20261126
	$(BIN)/python -m bench.packing
	$(BIN)/python -m bench.load_operate
	$(BIN)/python -m bench.injection
	$(BIN)/python -m bench.readme
	@if [ -e $(STAMP_VLLM) ]; then $(VENV_VLLM)/bin/python -m bench.vllm_drafts; \
	else echo "bench.vllm_drafts: skipped; make vllm makes what it needs"; fi

demo-models: $(STAMP) ## train both demo models anew (two to three hours on one CPU core; a GPU is used where there is one)
	$(BIN)/python -m training.demo_models --out stream_aligner_proxy/demo/models

format: $(STAMP) ## let ruff format and fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:          ## remove the virtual environment and caches
	rm -rf $(VENV) $(VENV_VLLM) $(VENV_TRAIN) $(HELM) $(NODE)/node_modules .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info
