# make demo: set up and refine a few people. make test: set up and run the tests.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test clean

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[demo,test]'
	touch $@

demo: .venv/ready
	$(BIN)/posefix demo --out demo

test: .venv/ready
	$(BIN)/python -m pytest -n 2 --dist loadfile

clean:
	rm -rf .venv demo
