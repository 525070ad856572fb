# One recipe of this file does one thing; `make` alone says which there are.

RECIPE ?= demo
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BUILD ?= docker build
# The first interpreter that is new enough; `make PYTHON=/path/to/python …` takes another.
PYTHON ?= $(shell for python in python3 python3.11 python3.12 python3.13 python3.14; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)

.DEFAULT_GOAL := help
.PHONY: help setup release test lint check bench faults seeds methods image pictures

help:  ## print this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY)  ## install everything into .venv (once, and again when the dependencies change)

release: $(READY)  ## make a release, from data to verified repository (RECIPE=demo)
	$(BIN)/python -m pipeline release $(RECIPE)

# By files, since the tests of a file share what they build. Three for two cores, since some tests wait.
test: $(READY)  ## run the tests
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

lint: $(READY)  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint test  ## style, types and tests: what a change must pass

bench: $(READY)  ## measure time and memory and print the tables
	$(BIN)/python -m benchmarks

faults: $(READY)  ## publish with a fault in each request, tamper with releases, plant canaries (over 50 minutes)
	$(BIN)/python -m benchmarks.faults

seeds: $(READY)  ## run the demo on ten data seeds that it was not tuned on (about four hours)
	$(BIN)/python -m benchmarks.seeds 66 68 69 70 71 72 73 74 75 76

pictures: $(READY)  ## take the pictures in the README, of the demo's pages (needs chromium)
	$(BIN)/python -m benchmarks.pictures

methods: $(READY)  ## compare all unlearning methods on three data seeds (over two hours each)
	$(BIN)/python -m benchmarks.methods

image:  ## build the image (BUILD="docker build"; ARGS="--build-arg TORCH_INDEX=https://pypi.org/simple" for a GPU)
	$(BUILD) $(ARGS) --tag unlearn-release \
		--build-arg VERSION="$$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)" \
		--build-arg COMMIT="$$(git describe --always --dirty --abbrev=40 --exclude '*')" .

# The stamp is written last: a set-up that was cut off starts again, and keeps what is already installed.
$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer was found: install one, or say make PYTHON=/path/to/python" >&2; exit 2; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is not Python 3.11 or newer: install one, or say make PYTHON=/path/to/python" >&2; exit 2; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@
