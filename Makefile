# Every target sets up its virtual environment first, if it is not there or not up to date.
# PYTHON=python3.13 takes that interpreter, in an environment of its own (.venv-3.13).

PYTHON ?= python3
SMOKE_RUN ?= runs/smoke

ifeq ($(PYTHON),python3)
VENV := .venv
else
# The interpreter's version, "" if it does not run; the setup recipe says so.
VENV := .venv-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
endif
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup reproduce check test test-slow test-faults test-parity test-bucket compile-tpu smoke validate-launch bench bench-peers bench-gpu soak wheel clean FORCE

help: ## show this list
	@echo "Usage: make TARGET [PYTHON=python3.13]"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## create the virtual environment with the pinned versions (about a minute)

# Remade when the pins change and, through the version file, when PYTHON is another version than the environment's.
$(STAMP): pyproject.toml constraints.txt $(VENV)/.python
	@echo "installing icl_jax and its development tools in $(VENV) (about a minute)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --editable ".[dev]" --constraint constraints.txt
	@touch $@

$(VENV)/.python: FORCE
	@version=$$($(PYTHON) -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null) || \
	    { echo "make: PYTHON=$(PYTHON) does not run; icl_jax needs Python 3.11 or newer" >&2; exit 1; }; \
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "make: $(PYTHON) is Python $$version; icl_jax needs 3.11 or newer, e.g. make setup PYTHON=python3.12" >&2; exit 1; }; \
	if [ "$$(cat $@ 2>/dev/null)" != "$$version" ]; then \
	    echo "creating $(VENV) with Python $$version"; \
	    rm -rf "$(VENV)" && $(PYTHON) -m venv "$(VENV)" && echo '*' > "$(VENV)/.gitignore" && echo "$$version" > $@; \
	fi

reproduce: setup ## train four small models through the phase change, analyze them and write the report
	$(BIN)/icl-jax reproduce quick --out runs/reproduce

check: setup ## lint, formatting, types, import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: setup ## fast tests, on 8 simulated devices
	$(BIN)/python -m pytest -n 2

test-slow: setup ## tests that take longer: packaging, kills, several processes
	$(BIN)/python -m pytest -m slow

test-faults: setup ## kills, full disks, damage, clocks, W&B that hangs: what each costs, as a table (about six minutes)
	$(BIN)/python -m pytest -m "slow or not slow" tests/faults \
	    tests/train/test_parallel.py::test_one_process_lost_ends_the_other_within_a_minute

test-parity: $(VENV)/.installed-parity ## tests against TransformerLens (installs it and PyTorch: 1 GB)
	$(BIN)/python -m pytest -m "slow or not slow" tests/parity

$(VENV)/.installed-parity: $(STAMP)
	@echo "installing TransformerLens and PyTorch in $(VENV) (about two minutes)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev,parity]" --constraint constraints.txt
	@touch $@

test-bucket: $(VENV)/.installed-bucket ## a run in a bucket, against a Cloud Storage on this machine (installs it and gcsfs)
	$(BIN)/python -m pytest -m slow tests/train/test_bucket.py

$(VENV)/.installed-bucket: $(STAMP)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev,bucket]" --constraint constraints.txt
	@touch $@

compile-tpu: $(VENV)-tpu/.installed ## compile the papers' models for TPU slices: memory, speed, cost (ten minutes)
	$(VENV)-tpu/bin/python -m pytest -m slow tests/plan/test_compiled.py
	$(VENV)-tpu/bin/icl-jax compile

# An environment of its own: where libtpu is installed, JAX looks for a TPU whenever it starts.
$(VENV)-tpu/.installed: $(VENV)/.python pyproject.toml constraints.txt
	@echo "installing icl_jax and libtpu in $(VENV)-tpu (about two minutes)"
	@rm -rf "$(VENV)-tpu" && $(PYTHON) -m venv "$(VENV)-tpu" && echo '*' > "$(VENV)-tpu/.gitignore"
	@$(VENV)-tpu/bin/python -m pip install -qq --disable-pip-version-check --editable ".[dev,tpu]" --constraint constraints.txt
	@touch $@

smoke: setup ## train a tiny model and verify its run directory (under 30 s)
	rm -rf $(SMOKE_RUN)
	$(BIN)/icl-jax train configs/smoke.toml --run $(SMOKE_RUN)
	$(BIN)/icl-jax verify $(SMOKE_RUN)

validate-launch: setup ## what launch writes, by the real tools: SkyPilot, xpk, Kubernetes' schemas, a Slurm of its own (as root)
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && ! command -v slurmctld >/dev/null; then \
	    apt-get -qq update && apt-get -qq install --no-install-recommends slurmctld slurmd slurm-client munge >/dev/null; fi
	$(BIN)/python -m tests.launch.validate

bench: setup ## speed and memory of training and of analysis, how they grow, where the time goes
	$(BIN)/python -m benchmarks.training
	$(BIN)/python -m benchmarks.analysis
	$(BIN)/python -m benchmarks.growth
	$(BIN)/python -m benchmarks.breakdown

bench-peers: $(VENV)/.installed-parity ## training and analysis beside PyTorch and TransformerLens (installs them: 1 GB; a quarter of an hour)
	$(BIN)/python -m benchmarks.peers
	$(BIN)/python -m benchmarks.analysis --peers

bench-gpu: $(VENV)/.installed-gpu ## training on one NVIDIA GPU beside PyTorch, bfloat16 (installs both for CUDA: 5 GB)
	$(BIN)/python -m benchmarks.peers --device gpu --contenders icl_jax "PyTorch eager" torch.compile

$(VENV)/.installed-gpu: $(STAMP)
	@echo "installing PyTorch and JAX for CUDA in $(VENV) (about three minutes)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev,parity,cuda]" --constraint constraints.txt
	@touch $@

soak: setup ## 10,000 steps on two host devices, watched for a hang
	$(BIN)/python -m benchmarks.soak

wheel: setup ## build the wheel and the source distribution in dist/
	$(BIN)/python -m build --no-isolation

clean: ## remove environments, caches and build outputs (never runs/)
	rm -rf .venv .venv-* dist build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
