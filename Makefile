# make run: a study from nothing to its report. make test: everything that the tests need, then the tests.
PYTHON ?= python3
CORES ?= all
CONFIG ?= config.yaml
# More words for pip, e.g. PIP_OPTIONS="--extra-index-url ..." for another build of torch.
PIP_OPTIONS ?=

OUT ?= benchmarks/results/gpu_acceptance.json

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet $(PIP_OPTIONS)
LOCKED := --no-deps --require-hashes

ifneq ($(words $(CURDIR)),1)
$(error "$(CURDIR)" has a space in its path, and Snakemake starts no job by a Python there: move this folder to a path without one)
endif

.PHONY: run fetch plan status verify serve smoke test test-long test-models test-faults test-load audit lint slurm-test gpu-test bench clean

# Snakemake names a missing config in a traceback.
define CONFIG_EXISTS
@test -f "$(CONFIG)" || { echo "there is no config $(CONFIG); write CONFIG= and the path of a study's YAML file" >&2; exit 1; }
endef

run: $(VENV)/.installed
	$(CONFIG_EXISTS)
	$(BIN)/snakemake --cores $(CORES) --configfile $(CONFIG)
	@$(BIN)/python -m workflow_scripts.report.show_results $(CONFIG)

# All that a study reads from the hub, for nodes without a network.
fetch: $(VENV)/.installed
	$(CONFIG_EXISTS)
	$(BIN)/snakemake fetch --cores $(CORES) --configfile $(CONFIG)

# What a study will cost, before it runs: CONFIG=configs/....yaml.
plan: $(VENV)/.installed
	$(CONFIG_EXISTS)
	@$(BIN)/snakemake plan --cores $(CORES) --configfile $(CONFIG)

# How far a study is, from its files alone.
status: $(VENV)/.installed
	@$(BIN)/python -m workflow_scripts.plan.show_status $(CONFIG)

# Which results were made with other values than the config says, or other models than are there now.
verify: $(VENV)/.installed
	@$(BIN)/python -m workflow_scripts.provenance.verify $(CONFIG)

# A local page, and an API, for questions to a finished study's encoder.
serve: $(VENV)/.installed-serve
	@$(BIN)/python -m workflow_scripts.serve --config $(CONFIG)

smoke:
	@$(MAKE) --no-print-directory run CONFIG=configs/smoke.yaml

# A file's tests share what they make, so each file stays with one worker; the longest files come first.
test: lint
	$(BIN)/pytest -m "not slow" -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder tests/workflow tests/unit tests/models
	$(BIN)/pytest -m "not slow" tests/faults

# Every method and every experiment through Snakemake, plans, DeepSpeed beside the native engine, the largest report, the
# page in a browser, and what hypothesis sends to the API.
test-long: $(VENV)/.installed-test
	$(BIN)/pytest -m slow tests/workflow tests/unit

# Tiny models of all families in docs/compatibility.md beside plain transformers and sentence-transformers: about four
# minutes of one core.
test-models: $(VENV)/.installed-test
	$(BIN)/pytest -n auto --maxprocesses 4 tests/models

# Kills, damaged files, full disks, two drivers: prints a table of the faults and what came of them. Mounts a small
# disk, so some of it needs root.
test-faults: $(VENV)/.installed-test
	$(BIN)/pytest tests/faults

# 10 million targets, a million rows, a thousand jobs: memory and time.
test-load: $(VENV)/.installed
	$(BIN)/python benchmarks/load.py

# Known vulnerabilities of the locked versions; where nobody can be asked, it says that nothing was checked.
audit: $(VENV)/.installed-test
	$(BIN)/python envs/audit.py

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/snakefmt --check Snakefile rules
	$(BIN)/snakemake --lint

# Needs slurmctld, slurmd and munged on this machine, and root.
slurm-test: $(VENV)/.installed-test
	$(BIN)/pytest tests/slurm

# Whether everything computes rightly on this machine's GPU, and how fast: about 8 minutes. OUT=FILE for the JSON.
gpu-test: $(VENV)/.installed
	PYTHONPATH=. $(BIN)/python benchmarks/gpu_acceptance.py --out $(OUT)

# Not those that take whole studies.
bench: $(VENV)/.installed-serve
	@for file in $$(grep -l __main__ $(filter-out %/fewer_folds.py %/gradient_choices.py %/plan_error.py %/warmup.py %/gpu_acceptance.py %/gpu_profile.py %/gpu_study.py,$(wildcard benchmarks/*.py))); do \
		echo "== $$file"; $(BIN)/python $$file || exit 1; done

# Results take hours to make, so they stay: remove results/<run> by hand.
clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis *.egg-info

$(VENV)/.installed: envs/requirements.lock envs/requirements-torch.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "Python 3.11 or newer is needed, and $(PYTHON) is not: write e.g. make run PYTHON=python3.12" >&2; exit 1; }
	@echo "Setting up $(VENV) with the versions of envs/requirements.lock (once, some minutes) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) $(LOCKED) -r envs/requirements.lock
	@$(PIP) -r envs/requirements-torch.lock
	@$(PIP) --no-deps --editable .
	@touch $@

$(VENV)/.installed-serve: $(VENV)/.installed envs/requirements-serve.lock
	@echo "Adding what the server needs (envs/requirements-serve.lock) ..."
	@$(PIP) $(LOCKED) -r envs/requirements-serve.lock
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed-serve envs/requirements-deepspeed.lock envs/requirements-test.lock
	@echo "Adding what the tests need (envs/requirements-deepspeed.lock, envs/requirements-test.lock) ..."
	@$(PIP) $(LOCKED) -r envs/requirements-deepspeed.lock -r envs/requirements-test.lock
	@touch $@
