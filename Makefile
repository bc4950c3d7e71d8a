# Each target sets up .venv by itself: a machine with python3, venv and pip is enough.
PYTHON ?= python3
BIN := .venv/bin
SET_UP := $(PYTHON) tools/environment.py
PYTEST_FLAGS ?=
DEMO ?= demo
TAG ?=
LOCK_FLAGS ?=

# Threads that wait for each other soon sleep: spinning ones keep the cores of a shared machine from everybody.
OMP_WAIT_POLICY ?= PASSIVE
GOMP_SPINCOUNT ?= 10000
export OMP_WAIT_POLICY GOMP_SPINCOUNT

MAKEFLAGS += --no-print-directory
.PHONY: demo test check docs format lock build clean

## Learn a drawn person from one portrait; write demo/index.html, demo/portrait.png and demo/ada.safetensors.
## Files of its own are replaced, others never: take another folder with DEMO=DIR.
demo:
	@$(SET_UP)
	@$(BIN)/sefi demo --out $(DEMO)

# Files in their order: by default those of few tests come last, and the documents' 13 take minutes, which one process
# then runs alone.
## Run the tests, a process for each core (four at most); the last line is pytest's own.
test:
	@$(SET_UP) --extras world,dev
	@$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(PYTEST_FLAGS)

## Style, types, architecture, and no unpickling anywhere.
check:
	@$(SET_UP) --extras world,dev
	@echo "-- ruff check"
	@$(BIN)/ruff check --quiet .
	@echo "-- ruff format"
	@$(BIN)/ruff format --quiet --check --diff .
	@echo "-- pyright"
	@$(BIN)/pyright --pythonpath $(BIN)/python
	@echo "-- import contracts"
	@$(BIN)/lint-imports --no-logo
	@echo "-- no pickle"
	@if grep -rnE '\bpickle\b|torch\.load\(|weights_only' --include='*.py' src; \
		then echo "error: nothing here may unpickle; use safetensors" >&2; exit 1; fi

## Build the documentation site into site/; a warning is an error.
docs:
	@$(SET_UP) --extras docs
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo "site/index.html"

## Let ruff rewrite what it can.
format:
	@$(SET_UP) --extras world,dev
	@$(BIN)/ruff check --quiet --fix .
	@$(BIN)/ruff format --quiet .

## Pin a version of everything that pyproject.toml asks for; pins that still fit stay, LOCK_FLAGS=--upgrade takes newer ones.
lock:
	@$(SET_UP) --extras lock
	@$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --no-annotate \
		--custom-compile-command "make lock" --quiet $(LOCK_FLAGS) --output-file constraints.txt

## Build the wheel and the source archive into dist/; with TAG=v1.2.3 a tag of another version than the package's is refused.
build:
	@$(SET_UP) --extras world,dev
	@rm -rf dist
	@$(BIN)/python -m hatchling build
	@if [ -n "$(TAG)" ] && ! [ -f "dist/sefi-$(TAG:v%=%)-py3-none-any.whl" ]; \
		then echo "error: the tag $(TAG) is not the version in src/sefi/core/__init__.py" >&2; exit 1; fi

clean:
	rm -rf dist .venv .pytest_cache .ruff_cache .hypothesis .import_linter_cache site
