# Two commands are enough: `make demo` and `make test`. Everything stays inside this folder (.tools, .venv), but uv's cache of packages.
.DEFAULT_GOAL := help
SHELL := /bin/bash

# A uv that really runs (a shim that only says "not found for this Python" does not count), else one of our own.
UV := $(shell uv --version >/dev/null 2>&1 && echo uv || echo .tools/bin/uv)
BIN := .venv/bin
PATCHES ?= 160
CHAOS ?= --minutes 3
STORE ?= demo/store

export UV_PROJECT_ENVIRONMENT := .venv
export RAY_USAGE_STATS_ENABLED := 0
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export DO_NOT_TRACK := 1

.PHONY: help setup demo test lint types contracts unit slow fuzz bench chaos notebooks docs lock clean

help:  ## List the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.tools/bin/uv:
	python3 -m venv .tools
	.tools/bin/python -m pip install --quiet --disable-pip-version-check uv

.venv/.ready: requirements.lock pyproject.toml .python-version | $(filter .tools/bin/uv,$(UV))
	$(UV) venv --quiet --allow-existing .venv
	VIRTUAL_ENV=$(CURDIR)/.venv $(UV) pip sync --quiet --compile-bytecode requirements.lock
	VIRTUAL_ENV=$(CURDIR)/.venv $(UV) pip install --quiet --no-deps --editable .
	@touch $@

setup: .venv/.ready  ## Install everything into .venv

demo: setup  ## A synthetic archive through the whole flow; PATCHES=160
	$(BIN)/superscene demo demo --patches $(PATCHES)

test: setup lint types contracts unit  ## Lint, types, import contracts and tests: what CI runs

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

types: setup
	$(BIN)/mypy

contracts: setup
	$(BIN)/lint-imports --no-cache

# In the order of the folders, but tests/flows first: sorted by their number of tests, as is usual, the few long ones would
# come last, on one core. Three processes keep two cores busy: one has the flows (tests/conftest.py), and mostly waits for
# what it has started: hundreds of processes, which need not compile the sources each for itself.
unit: export PYTHONDONTWRITEBYTECODE :=
unit: setup
	$(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder

slow: setup  ## The tests that take minutes
	$(BIN)/pytest -m slow

fuzz: setup  ## 11,000 damaged and hostile inputs, some minutes
	$(BIN)/python -m tests.fuzz.campaign

bench: setup  ## Every benchmark, results to benchmarks/results; sr_quality needs SUPERSCENE_DATA
	failed=0; for file in benchmarks/*.py; do \
	  $(BIN)/python $$file --out benchmarks/results/$$(basename $$file .py).json || failed=1; \
	done; exit $$failed

chaos: setup  ## Kill, starve and cut off a run until it is done, and compare; CHAOS="--hours 8"
	$(BIN)/python -m benchmarks.chaos --folder work/chaos $(CHAOS)

notebooks: setup  ## Run the notebooks on the demo's store; STORE=demo/store
	$(BIN)/python docs/run_notebooks.py $(STORE)

docs: setup  ## The documentation's site, in work/site; every warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

lock: | $(filter .tools/bin/uv,$(UV))  ## Resolve requirements.lock anew
	$(UV) pip compile --quiet --universal --generate-hashes --no-annotate --no-header --upgrade --python-version 3.12 \
	  pyproject.toml --group dev --output-file requirements.lock

clean:  ## Remove the demo's output
	rm -rf demo
