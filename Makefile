# Every target sets up what it needs by itself; begin with `make demo` and `make test`.

PYTHON ?= python3
# Pinned here only: without it pip takes the newest build, with gigabytes of CUDA on a CPU machine.
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
PYTEST_ARGS ?=
CORE := $(VENV)/.core
DEV := $(VENV)/.dev
BUILD := $(VENV)/.build

.DEFAULT_GOAL := help
.PHONY: help demo adapt-demo serve-demo test check lint types contracts wheel bench docs builtin clean

help:  ## List the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(BIN)/python:
	@$(PYTHON) -c "import sys; sys.exit('EmbedLM needs Python 3.11 or later, and $(PYTHON) is ' + sys.version.split()[0] + '; name another: make demo PYTHON=python3.12' if sys.version_info < (3, 11) else 0)"
	$(PYTHON) -m venv $(VENV)

$(CORE): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(DEV): $(CORE)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	@touch $@

# Neither PyTorch nor EmbedLM itself; the build says which hatchling it needs.
$(BUILD): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check build hatchling
	@touch $@

demo: $(CORE)  ## Ask three questions over the project's own docs, by two recipes.
	$(BIN)/python examples/demo.py

adapt-demo: $(DEV)  ## Adapt the built-in model to the project's own docs; minutes on 2 cores.
	$(BIN)/embedlm adapt docs -o adapted-demo --steps 24

serve-demo: $(CORE)  ## Index three guides, serve them, and ask over HTTP and as an agent.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[serve,mcp,search]"
	$(BIN)/python examples/serve_demo.py

test: $(DEV)  ## Run the tests.
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(DEV)  ## Check style and form.
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(DEV)  ## Check types.
	$(BIN)/mypy

contracts: $(DEV)  ## Which room may import which, as pyproject.toml says.
	$(BIN)/lint-imports

check: lint types contracts test  ## All that CI checks.

wheel: $(BUILD)  ## Build the source archive and, from it, the wheel into dist/.
	$(BIN)/python -m build --no-isolation --outdir dist

bench: $(DEV)  ## Measure against the peers; takes a while and wants a quiet machine.
	$(BIN)/python benchmarks/encode.py

docs: $(DEV)  ## Build the documentation into site/.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

DATA ?= data
WORK ?= work/builtin
builtin: $(DEV)  ## Make the built-in models anew from the data sets in DATA: minutes on a GPU; STEPS=4000 on a CPU, hours.
	$(BIN)/python examples/builtin_model/build.py $(DATA) -o $(WORK) $(if $(STEPS),--steps $(STEPS))

clean:  ## Remove the environment and all that was built.
	rm -rf $(VENV) site dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
