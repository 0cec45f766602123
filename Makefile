# Fresh machine: `make quickstart` and `make test` are all the set-up there is.
# PYTHON: interpreter that makes .venv (3.11 or newer).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SERVING_BASE := tuneline/vllm-cpu:0.32.0

.PHONY: help install quickstart serving-base check test test-long bench lock clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  \1\t/' | expand -t 18

install: $(VENV)/.installed ## make .venv from the lock

# pip, not uv: it takes torch from wherever this machine's pip is told to look, a CPU build included.
$(VENV)/.installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

quickstart: install serving-base ## from a YAML to a served model, on this machine
	$(BIN)/tuneline quickstart

serving-base: install ## build the CPU serving base once, where a Docker engine answers
	@if ! docker info >/dev/null 2>&1; then \
	  echo "No Docker engine answers: the run will stop before the image, at the alias challenger."; \
	elif ! docker image inspect $(SERVING_BASE) >/dev/null 2>&1; then \
	  echo "Building $(SERVING_BASE), once, about three minutes ..."; \
	  docker build --quiet --network host --tag $(SERVING_BASE) --file docker/vllm-cpu.Dockerfile docker/ && \
	  $(BIN)/tuneline image base $(SERVING_BASE); \
	fi

check: install ## style, types, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: install serving-base ## every promise that fits in 45 minutes on two cores
	$(BIN)/pytest -m "not long"

test-long: install serving-base ## the rest
	$(BIN)/pytest -m long

bench: install serving-base ## measure speed and memory; results that matter go to benchmarks/RESULTS.md
	$(BIN)/python -m benchmarks.orchestration
	$(BIN)/python -m benchmarks.imports
	$(BIN)/python -m benchmarks.near_duplicates
	$(BIN)/python -m benchmarks.data_preparation --rows 20000

lock: ## resolve pyproject.toml afresh and pin what comes out
	rm -rf .venv-lock
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install --quiet --upgrade pip
	.venv-lock/bin/pip install --quiet torch==2.13.0
	.venv-lock/bin/pip install --quiet --group dev --editable .
	@(sed -n '/^#/p' requirements.lock; .venv-lock/bin/pip freeze --exclude-editable | sed 's/+cpu//') > requirements.lock.new
	mv requirements.lock.new requirements.lock
	rm -rf .venv-lock

clean: ## remove the environment and every result
	rm -rf $(VENV) .tuneline
