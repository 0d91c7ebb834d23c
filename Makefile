# Paths are relative: the clone may live in a folder whose name has a space.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PY := .venv/bin/python
.PHONY: help setup interop demo test check types unit lint format lock

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

setup: ## create .venv with the pinned stack (cpu or gpu); does nothing where it is up to date
	@./requirements/setup.sh

interop: setup ## create .venv-interop, the foreign programs that tests speak with; does nothing where it is up to date
	@$(PY) requirements/interop.py

demo: setup ## watch a tiny model learn tools by trying them: make demo SEED=3 ARGS='...'
	.venv/bin/trialrun demo $(if $(SEED),--seed $(SEED)) $(ARGS)

test: setup interop ## every test, real vLLM, DeepSpeed, Ray and foreign programs included: make test ARGS='tests/rollout'
	$(PY) -m pytest -q --durations=15 $(ARGS)

check: setup lint ## lint, types, layer test and fast unit tests: under two minutes
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target types unit

types: setup ## basedpyright over the packages and the tests
	$(PY) -m basedpyright

unit: setup ## the tests that start neither vLLM nor DeepSpeed nor Ray
	$(PY) -m pytest -q -m "not real and not gpu" --numprocesses=2 --dist=loadfile $(ARGS)

lint: setup ## ruff: rules and format
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

format: setup ## let ruff repair what it can
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

lock: setup ## resolve requirements/*.lock again, after a change in pyproject.toml or requirements/*.in
	$(PY) requirements/install.py lock
	$(PY) requirements/interop.py lock
