# Development tasks. `make` lists them; each task first installs the packages that it needs.
#   make PYTHON=python3.12 install    use this Python instead of python3
#   make test ARGS="-k ppo -x"        pass arguments to pytest
#   make bench COMPARE=sac ARGS="--rounds 5"

PYTHON ?= python3
ARGS ?=
COMPARE ?= ppo trpo sac td3 ranks slow startup

VENV := .venv
VENV_BENCH := .venv-bench
INSTALLED := $(VENV)/.installed
INSTALLED_BENCH := $(VENV_BENCH)/.installed
KERNELS := spinup/fast/_kernels.c spinup/fast/_kernels.h spinup/fast/_ranks.c
PIP_INSTALL = -m pip --disable-pip-version-check install $$(test -t 1 || echo --quiet)

.DEFAULT_GOAL := help
.PHONY: help install train test test-all test-faults test-slurm lint format type bench figures clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED)  ## create .venv with the pinned packages and this checkout

train: $(INSTALLED)  ## train PPO on CartPole-v1 on two MPI ranks and draw its learning curve
	$(VENV)/bin/python -m spinup.examples.train_cartpole

test: $(INSTALLED)  ## run the tests, except the slow ones
	$(VENV)/bin/python -m pytest $(ARGS)

test-all: $(INSTALLED)  ## run all tests, including the slow ones
	$(VENV)/bin/python -m pytest -m "" $(ARGS)

test-faults: $(INSTALLED)  ## kill runs at fifty random moments and resume them
	$(VENV)/bin/python -m pytest -m "" -s tests/test_faults.py $(ARGS)

test-slurm: $(INSTALLED)  ## test grids on a local Slurm, which is installed if missing (Debian, as root)
	@command -v slurmctld >/dev/null && command -v munged >/dev/null || { apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends \
	    slurm-wlm munge >/dev/null; }
	$(VENV)/bin/python -m pytest -m slurm tests/test_slurm.py -v $(ARGS)

lint: $(INSTALLED)  ## check the code style without changing files
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m ruff format --check .

format: $(INSTALLED)  ## fix the code style where that is safe
	$(VENV)/bin/python -m ruff check --fix .
	$(VENV)/bin/python -m ruff format .

type: $(INSTALLED)  ## check the types
	$(VENV)/bin/python -m mypy

bench: $(INSTALLED_BENCH)  ## compare the speed with other libraries, in .venv-bench
	for algo in $(COMPARE); do \
	  $(VENV_BENCH)/bin/python tests/benchmarks/compare.py $$algo $(ARGS) || exit; done

figures: $(INSTALLED)  ## update the tables of results in docs/ from data/benchmarks
	$(VENV)/bin/python tests/benchmarks/parity.py --page docs/speed.md

clean:  ## remove all files that the targets made, except the runs in data/
	rm -rf $(VENV) $(VENV_BENCH) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find spinup tests docs -name __pycache__ -type d -prune -exec rm -rf {} +

# An environment is created again only if a file that determines its packages has changed.
$(INSTALLED): setup.py pyproject.toml requirements-dev.txt $(KERNELS)
	$(call make_venv,$(VENV),requirements-dev.txt)

$(INSTALLED_BENCH): setup.py pyproject.toml tests/benchmarks/requirements.txt $(KERNELS)
	$(call make_venv,$(VENV_BENCH),tests/benchmarks/requirements.txt)

# The checkout is installed last, so that it is built by the pinned setuptools. The mode "compat" adds
# its path to sys.path, so that it is found even from a folder that holds the checkout as "spinup".
define make_venv
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "spinup needs CPython 3.10 or newer and found $$($(PYTHON) --version 2>&1);" \
	    "use another one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "Installing into $(1): the first time takes a few minutes, mostly for torch"
	$(PYTHON) -m venv $(1)
	$(1)/bin/python $(PIP_INSTALL) --requirement $(2)
	$(1)/bin/python $(PIP_INSTALL) --no-build-isolation --config-settings editable_mode=compat \
	  --editable .
	@touch $(1)/.installed
endef
