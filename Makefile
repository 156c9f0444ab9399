# Everything runs in .venv, which is made once and again when pyproject.toml or constraints.txt change.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SETUP := pyproject.toml constraints.txt
# A terminal shows what pip is at; a log would fill with the names of 150 packages.
define install
@echo "Installing torch, Ray and the rest into $(VENV), once: a few minutes and about 7 GB."
@if [ -t 1 ]; then quiet=; else quiet=--quiet; fi; \
	$(BIN)/python -m pip install $$quiet --disable-pip-version-check -c constraints.txt -e $(1)
endef

.DEFAULT_GOAL := help
.PHONY: help demo test docs expect fuzz bench render faults lint format clean

help: ## show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /make \1\t/' | expand -t 14

demo: $(VENV)/.installed ## install, then search every embedded task and print the results
	@echo "Five few-shot tasks on the embedded data sets: about 2 minutes on 2 cores."
	$(BIN)/python -m safe_ray.tune

test: $(VENV)/.installed-dev ## install with the development tools, then run the whole test suite
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=40

docs: $(VENV)/.installed-dev ## build the documentation as a site, build/docs/index.html; a warning is an error
	$(BIN)/python -m sphinx -W --keep-going -q -b html -c docs . build/docs
	@echo "The site is build/docs/index.html."

expect: $(VENV)/.installed-dev ## run the whole embedded suite, and compare with docs/results.md and conf/tasks
	$(BIN)/python -m pytest --long -m long

fuzz: $(VENV)/.installed-dev ## read a hundred thousand hostile files: half an hour, and a table
	$(BIN)/python -m tests.fuzz

bench: $(VENV)/.installed ## measure against open_clip and numpy, and write docs/performance.json
	$(BIN)/python -m bench

render: $(VENV)/.installed-dev ## write deploy/rendered from the chart and deploy/values
	deploy/render --helm "$$($(BIN)/python -m tests.deploy.binaries helm)"

faults: $(VENV)/.installed-dev ## kill, cut off, fill up and damage sweeps for hours, and write docs/reliability.md
	$(BIN)/python -m tests.faults --write docs/reliability.md

lint: $(VENV)/.installed-dev ## style, types and the import contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the environment and the caches, but no results
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(SETUP) | $(BIN)/python
	$(call install,.)
	@touch $@

$(VENV)/.installed-dev: $(SETUP) | $(BIN)/python
	$(call install,'.[dev]')
	@touch $@ $(VENV)/.installed
