# Each target sets up .venv with what it needs; a machine with python3 and make has all it takes.
#   make demo       refine people in two sample photographs
#   make test       run all tests
#   make test-fast  run the tests that compile no network and start no process
#   make wheel      build the wheel, install it alone, and run the demo from it
#   make check      lint, check the format and the types
#   make lock       write constraints.txt: the versions that are installed, with which the tests have passed
#   make docs       build the documentation site into site/
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-fast wheel check lock docs clean

# .venv/NAME.ready: the package is installed with its extra NAME.
.venv/%.ready: pyproject.toml | .venv/bin/pip
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	touch $@

# The package alone, as `pip install posefix-jax` gives it.
.venv/bin/posefix: pyproject.toml | .venv/bin/pip
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/bin/pip:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip

.PRECIOUS: .venv/%.ready

demo: .venv/bin/posefix
	$(BIN)/posefix demo --out demo

test: .venv/test.ready
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-fast: .venv/test.ready
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

# From another folder, so that the package is the wheel's and not this tree.
wheel:
	rm -rf build dist .venv-wheel
	$(PYTHON) -m venv .venv-wheel
	.venv-wheel/bin/python -m pip wheel --quiet --no-deps --wheel-dir dist .
	rm -rf build
	.venv-wheel/bin/python -m pip install --quiet dist/*.whl
	cd dist && ../.venv-wheel/bin/posefix demo --out demo

check: .venv/check.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lock: .venv/test.ready
	$(BIN)/python -m pip freeze --quiet --exclude-editable > constraints.txt

docs: .venv/docs.ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf .venv .venv-wheel build dist demo site
