# spinup's errands. `make` lists them; each installs what it needs first.
#   make PYTHON=python3.12 install    another Python than python3
#   make test ARGS="-k ppo -x"        arguments for pytest
#   make bench COMPARE=sac ARGS="--rounds 5"

PYTHON ?= python3
ARGS ?=
COMPARE ?= ppo sac td3 ranks

VENV := .venv
VENV_BENCH := .venv-bench
INSTALLED := $(VENV)/.installed
INSTALLED_BENCH := $(VENV_BENCH)/.installed
KERNELS := spinup/fast/_kernels.c spinup/fast/_kernels.h
PIP_INSTALL = -m pip --disable-pip-version-check install $$(test -t 1 || echo --quiet)

.DEFAULT_GOAL := help
.PHONY: help install train test test-all test-faults test-slurm lint format type bench figures clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED)  ## make .venv with the pinned versions and this checkout in it

train: $(INSTALLED)  ## train PPO on CartPole-v1 on two MPI ranks and draw its learning curve
	$(VENV)/bin/python -m spinup.examples.train_cartpole

test: $(INSTALLED)  ## run the tests of a few minutes
	$(VENV)/bin/python -m pytest $(ARGS)

test-all: $(INSTALLED)  ## run every test, those that learn for long included
	$(VENV)/bin/python -m pytest -m "" $(ARGS)

test-faults: $(INSTALLED)  ## kill runs at random moments, fifty times, and resume them
	$(VENV)/bin/python -m pytest -m "" -s tests/test_faults.py $(ARGS)

test-slurm: $(INSTALLED)  ## run grids on a Slurm of this one machine, installed if need be (Debian, as root)
	@command -v slurmctld >/dev/null && command -v munged >/dev/null || { apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends \
	    slurm-wlm munge >/dev/null; }
	$(VENV)/bin/python -m pytest -m slurm tests/test_slurm.py -v $(ARGS)

lint: $(INSTALLED)  ## check the style, change nothing
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m ruff format --check .

format: $(INSTALLED)  ## mend the style where that is safe
	$(VENV)/bin/python -m ruff check --fix .
	$(VENV)/bin/python -m ruff format .

type: $(INSTALLED)  ## check the types
	$(VENV)/bin/python -m mypy

bench: $(INSTALLED_BENCH)  ## measure the speed against other libraries, in .venv-bench
	for algo in $(COMPARE); do \
	  $(VENV_BENCH)/bin/python tests/benchmarks/compare.py $$algo $(ARGS) || exit; done

figures: $(INSTALLED)  ## put the tables of measured results into the pages, from data/benchmarks
	$(VENV)/bin/python tests/benchmarks/parity.py --page docs/speed.md

clean:  ## remove what the targets made, but for the runs in data/
	rm -rf $(VENV) $(VENV_BENCH) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find spinup tests docs -name __pycache__ -type d -prune -exec rm -rf {} +

# Each environment is made again only when a file that decides what is in it has changed.
$(INSTALLED): setup.py pyproject.toml requirements-dev.txt $(KERNELS)
	$(call make_venv,$(VENV),requirements-dev.txt)

$(INSTALLED_BENCH): setup.py pyproject.toml tests/benchmarks/requirements.txt $(KERNELS)
	$(call make_venv,$(VENV_BENCH),tests/benchmarks/requirements.txt)

# The checkout goes in last, built by the setuptools that the pins brought; as a path (compat), so
# that it is found even from a folder in which the checkout itself is called spinup.
define make_venv
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "spinup needs CPython 3.10 or newer and found $$($(PYTHON) --version 2>&1);" \
	    "name another: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "Installing into $(1): some minutes the first time, most of them torch"
	$(PYTHON) -m venv $(1)
	$(1)/bin/python $(PIP_INSTALL) --requirement $(2)
	$(1)/bin/python $(PIP_INSTALL) --no-build-isolation --config-settings editable_mode=compat \
	  --editable .
	@touch $(1)/.installed
endef
