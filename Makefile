# Paths are relative: the clone may live in a folder whose name has a space.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PY := .venv/bin/python
PYTEST := $(PY) -m pytest -q --durations=15 --numprocesses=2 --dist=loadfile
UNIT := -m "not real and not gpu"
# `make check` leaves these to `make test`: they start sandboxes and servers, or compute for long.
SLOW := envs/test_schemas_random.py envs/sandbox envs/server envs/gateway envs/remote envs/sources \
    envs/tasksets learner/families rollout/chat/test_corpus.py rollout/test_mcp_episodes.py \
    rollout/test_own_tools.py rollout/test_runner_trials.py rollout/test_scorers.py rollout/mirror \
    rollout/store/test_damage.py rollout/store/test_lock_holder.py cluster/cli/test_check.py \
    cluster/cli/test_path_checks.py cluster/dashboard cluster/mirror cluster/replay \
    cluster/scheduling/test_infra_failures.py cluster/scheduling/test_tool_check.py cluster/study \
    cluster/teachers/test_teacher_tools.py cluster/training/test_step_metrics.py chaos examples e2e \
    interop gpu
# In the order of the files: tests/conftest.py puts the longest ones first.
REAL := -m "(real or gpu) and not long" --no-loadscope-reorder

# Tests start many processes: each would compile our modules anew.
export PYTHONDONTWRITEBYTECODE :=

# Unit tests, then the real ones, also after a failed unit test. Exit status 5 of pytest: the given
# path has no test of that kind.
define RUN_BOTH
$(PYTEST) $(UNIT) $(ARGS); unit=$$?; \
$(PYTEST) $(REAL) $(ARGS); real=$$?; \
if [ $$unit = 5 ] && [ $$real = 5 ]; then exit 5; fi; \
for status in $$unit $$real; do case $$status in 0|5) ;; *) exit $$status ;; esac; done
endef

.PHONY: help setup interop demo test long check types fast unit lint format lock containers chaos

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

setup: ## create .venv with the pinned stack (cpu or gpu); does nothing where it is up to date
	@./requirements/setup.sh

interop: setup ## create .venv-interop, the foreign programs that tests speak with; does nothing where it is up to date
	@$(PY) requirements/interop.py

demo: setup ## watch a tiny model learn tools by trying them: make demo SEED=3 ARGS='...'
	.venv/bin/trialrun demo $(if $(SEED),--seed $(SEED)) $(ARGS)

test: setup interop ## every test in two processes, unit tests first, then the real ones: make test ARGS='tests/rollout'
	@$(RUN_BOTH)

long: setup interop ## the real tests that take minutes: whole pages, same bits twice, runs that are killed or cut off; CI runs it after `make test`
	$(PYTEST) -m long --no-loadscope-reorder $(ARGS)

containers: setup ## build the images and try a cluster of containers: needs a container engine and `docker compose`, takes long
	TRIALRUN_CONTAINERS=1 $(PY) -m pytest -v tests/containers $(ARGS)

chaos: setup ## faults in real runs, each with a witness; exact resume; cut networks: takes long, knows TRIALRUN_CHAOS_SEED
	TRIALRUN_LONG_TESTS=1 $(PY) -m pytest -v -s tests/chaos $(ARGS)

check: setup lint ## lint, types, layer test and fast unit tests
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target types fast

types: setup ## basedpyright over the packages and the tests
	$(PY) -m basedpyright

fast: setup ## the unit tests without those that take longest, see SLOW
	$(PYTEST) $(UNIT) $(addprefix --ignore=tests/,$(SLOW)) $(ARGS)

unit: setup ## the tests that start neither vLLM nor DeepSpeed nor Ray
	$(PYTEST) $(UNIT) $(ARGS)

lint: setup ## ruff: rules and format
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

format: setup ## let ruff repair what it can
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

lock: setup ## resolve requirements/*.lock again, after a change in pyproject.toml or requirements/*.in
	$(PY) requirements/install.py lock
	$(PY) requirements/interop.py lock
