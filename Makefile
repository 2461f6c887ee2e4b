# Short names for the commands of CONTRIBUTING.md; everything also works without make.
BIN ?= .venv/bin

.DEFAULT_GOAL := help
.PHONY: help install demo test lint format types layers load ci

help:  ## list these targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 12

install: $(BIN)/pytest  ## a virtual environment with everything needed to work on Nearfield

$(BIN)/pytest: pyproject.toml constraints.txt
	python3 -m venv .venv
	$(BIN)/pip install -c constraints.txt -e ".[test]"
	@touch $@

demo: install  ## load the packaged data, ask five questions, keep serving
	$(BIN)/nearfield demo

test: install  ## the test suite
	$(BIN)/pytest

lint: install  ## style and common mistakes
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: install  ## rewrite files in the house format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

types: install  ## mypy, strict
	$(BIN)/mypy

layers: install  ## imports go down only
	$(BIN)/lint-imports

load: install  ## what the load tests can run and report
	$(BIN)/python -m loadtests --help

ci:  ## the whole gate in a fresh environment
	.ci/run
