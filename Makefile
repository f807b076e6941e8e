# Everything a contributor runs. `make` alone prints this list.
SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
# The newest Python that the gateway supports; override with PYTHON=…
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$p && break; done)
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint deploy/constraints.txt
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help run test check format lint types layers docs bench bench-ledger campaign fuzz clean

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(VENV)/.runtime ## install, start PostgreSQL and a demo upstream, make a wallet, and serve (Ctrl-C stops it all)
	@exec $(BIN)/farebox demo

test: $(VENV)/.dev ## run the tests (ARGS="tests/core -x" for some of them)
	@$(BIN)/python -m pytest $(ARGS)

check: lint types layers test ## what CI runs: format, lint, types, layers, tests

format: $(VENV)/.dev ## rewrite the code in the project's format
	@$(BIN)/ruff check --fix --quiet . && $(BIN)/ruff format --quiet .

lint: $(VENV)/.dev ## check format and lint
	@$(BIN)/ruff format --check --quiet . && $(BIN)/ruff check --quiet .

types: $(VENV)/.dev ## mypy --strict
	@$(BIN)/mypy

layers: $(VENV)/.dev ## check the import contracts
	@$(BIN)/lint-imports --no-cache

docs: $(VENV)/.dev ## write the table of endpoints in the README anew, from the route table
	@$(BIN)/python -m tests.support.surface

bench: $(VENV)/.dev ## measure against a bare relay; a table, and .artifacts/bench.json (ARGS="--quick")
	@$(BIN)/python -m tests.benchmarks.bench $(ARGS)

bench-ledger: $(VENV)/.dev ## measure the ledger by itself: one statement per call, the lane, and growth (ARGS="--quick")
	@$(BIN)/python -m tests.benchmarks.bench_ledger $(ARGS)

campaign: $(VENV)/.dev ## live seeds of adversity; a table, and .artifacts/campaign.json (SEEDS=200, or SEED=17 repeats one)
	@$(BIN)/python -m tests.adversity.campaign.runner $(if $(SEED),--seed $(SEED),--seeds $(or $(SEEDS),20)) $(ARGS)

fuzz: $(VENV)/.dev ## fuzz what reads bytes from outside, guided by coverage where atheris is installed (MINUTES=10)
	@nice $(BIN)/python -m tests.properties.fuzz.run --minutes $(or $(MINUTES),10) $(ARGS)

clean: ## remove the virtual environment and artifacts; data in .farebox stays
	rm -rf $(VENV) .artifacts

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "Farebox needs Python 3.11, 3.12 or 3.13."; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "Python's venv module is missing (on Debian: apt install python3-venv)."; exit 1; }

$(VENV)/.runtime: $(VENV)/bin/python pyproject.toml deploy/constraints.txt
	@echo "Installing Farebox into $(VENV) …" >&2
	@$(PIP) --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	@echo "Installing what the tests need …" >&2
	@$(PIP) --editable '.[dev]'
	@touch $@
