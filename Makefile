# Each target sets up .venv with what it needs; a machine with python3 and make has all it takes.
#   make demo       refine people in two sample photographs
#   make test       run all tests
#   make test-fast  run the tests that compile no network and start no process
#   make check      lint, check the format and the types
#   make docs       build the documentation site into site/
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-fast check docs clean

# .venv/NAME.ready: the package is installed with its extra NAME.
.venv/%.ready: pyproject.toml | .venv/bin/pip
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	touch $@

.venv/bin/pip:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip

.PRECIOUS: .venv/%.ready

demo: .venv/demo.ready
	$(BIN)/posefix demo --out demo

test: .venv/test.ready
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-fast: .venv/test.ready
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

check: .venv/check.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/docs.ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf .venv demo site
