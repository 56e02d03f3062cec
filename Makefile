# Everything from a bare clone: `make demo` runs the main job, `make test` the whole test suite.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint unit env clean

demo: env
	$(BIN)/distcompile run examples/structures/LiCoO2_supercell.extxyz --calculator chgnet --ranks 2 --check

test: lint unit

unit: env
	$(BIN)/python -m pytest tests

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p distcompile -p distcompile.passes -p distcompile.runtime

env: $(VENV)/dependencies
	$(BIN)/pip install --quiet --no-deps --config-settings editable_mode=strict --editable .

# torch comes first and stays: what is installed later must accept the pinned version.
$(VENV)/dependencies: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch setuptools
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[chgnet,mace,dev]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
