# `make demo` and `make test` work in a fresh clone: each creates .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Processes of the tests import the same modules again and again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo quick test faults mutants fuzz check coverage lint audit sbom clients docs reference bench compose-test image-test format lock clean

help:  ## List the targets.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(VENV)/.installed  ## Create .venv with the versions of constraints.txt.

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
		|| { echo "Python 3.11, 3.12 or 3.13 is needed (TorchScript supports no later one): make PYTHON=python3.13 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=26,<27"  # Python's own takes three times as long
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable ".[train,loggers,embedded,kafka,otel,dev]"
	@$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true  # what pip would do on one processor; some files are for other Pythons
	@touch $@

demo: setup  ## Train on a synthetic shop, start Redis and the service, simulate shoppers. Ctrl-C stops.
	$(BIN)/willbuy demo

# What most changes break, without what is marked as slow.
QUICK := unit/app unit/model unit/training/data/sources unit/training/test_config.py \
	integration/test_ingest.py integration/test_stores.py e2e/test_bad_input.py
# A file's tests share their servers and models, so a file is one worker's. Those with slow tests begin first.
PYTEST := $(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

quick: setup  ## Run the tests that catch most mistakes, in about a minute.
	$(PYTEST) -m "not slow" --hypothesis-profile quick --durations 5 $(addprefix tests/,$(QUICK))

test: setup  ## Run all tests, and show the slowest thirty.
	$(PYTEST) --durations 30 $(if $(COVERAGE),--cov --cov-report=term --cov-fail-under=$(COVERAGE))

faults: setup  ## Run the long fault schedules (docs/faults.md); takes ten minutes or more.
	PYTHONPATH=tests $(BIN)/python -m faults

mutants: setup  ## Plant bugs in a copy, one by one, and show which the tests catch; takes half an hour.
	PYTHONPATH=tests $(BIN)/python -m mutants $(AREA)

docs: setup  ## Build the documentation into site/.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# In place of npm, which is not needed for a package without dependencies.
VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
clients: setup  ## Build the clients into dist/: a tarball for npm and a wheel.
	mkdir -p dist
	cd clients/js && $(CURDIR)/$(BIN)/deno pack --no-source-maps --allow-dirty --set-version $(VERSION) \
		--output $(CURDIR)/dist/willbuy-client-$(VERSION).tgz
	$(BIN)/python -m build --wheel --no-isolation --outdir dist clients/python

reference: setup  ## Write docs/reference and the JavaScript client's types from the code.
	$(BIN)/python -m docs.generate

bench: .bench/.installed  ## Measure the hot path against other servers; needs wrk, takes 25 minutes. BEFORE=checkout BEFORE_ARTIFACT=file
	.bench/bin/python -m benchmarks.hotpath all $(if $(BEFORE),--before $(BEFORE)) $(if $(BEFORE_ARTIFACT),--before-artifact $(BEFORE_ARTIFACT))

.bench/.installed: pyproject.toml constraints.txt benchmarks/requirements-peers.txt
	$(PYTHON) -m venv .bench
	.bench/bin/python -m pip install --quiet --constraint constraints.txt --requirement benchmarks/requirements-peers.txt --editable ".[train,embedded,dev]"
	@touch $@

compose-test: setup  ## Build and run the compose file on a Docker engine: load, kill, scale, restart, roll (Linux).
	PYTHONPATH=tests $(BIN)/python -m faults.containers

image-test: setup  ## Build and test the image, with Docker or without (root on Debian; apt: buildah debootstrap).
	PYTHON=$(BIN)/python deploy/image-test/run.sh

lint: setup  ## Check style, types and import rules.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

audit: setup  ## Check for known vulnerabilities in the dependencies and for risky patterns in the code.
	$(BIN)/bandit -q -c pyproject.toml -r app model training
	$(BIN)/python .ci/audit.py

sbom: setup  ## Write sbom.json, a list of all installed packages (CycloneDX).
	$(BIN)/cyclonedx-py environment $(BIN)/python --pyproject pyproject.toml --mc-type application --output-reproducible --of JSON -o sbom.json

fuzz: setup  ## Run thousands of generated requests, mutated bytes, and other examples for all property tests.
	WILLBUY_FUZZ_CASES=300 $(BIN)/python -m pytest tests/fuzz -s --timeout 3600
	WILLBUY_FUZZ_CASES=300 $(BIN)/python -m pytest tests -m hypothesis --ignore tests/fuzz --timeout 3600

check: lint audit test  ## Run what CI runs: all checks and all tests.

coverage: setup  ## Run all tests and fail if they run less than 95 % of the branches.
	$(MAKE) test COVERAGE=95

format: setup  ## Format the code.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock:  ## Write constraints.txt from the ranges in pyproject.toml, in a new environment.
	rm -rf .lock && $(PYTHON) -m venv .lock
	.lock/bin/python -m pip install --quiet --editable ".[train,loggers,embedded,kafka,otel,dev]"
	@{ echo "# Exact versions of all packages in .venv; 'make lock' writes this file from pyproject.toml."; \
		.lock/bin/python -m pip freeze --exclude-editable | sed -E 's/^(torch==[0-9.]+)\+.*/\1/'; } > constraints.txt
	rm -rf .lock

clean:  ## Remove the environment and all build results.
	rm -rf $(VENV) .bench build dist site artifacts .mypy_cache .ruff_cache .pytest_cache .hypothesis
