# make train   sets up .venv and runs the Cantonese recipe
# make test    sets up .venv with the developers' tools, then lint, types, tests and quick benchmarks
# make docs    builds the documentation as a site: site/index.html
# make bench   measures everything on this machine, into bench/results
PYTHON ?= python3
RECIPE ?= cantonese-pos
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: train test workers static docs bench lint clean
.DELETE_ON_ERROR:

train: .venv/installed
	$(BIN)/fangyan train $(RECIPE)

# Lint, and what benchmarks need no clock, beside the tests, whose workers often wait. What times runs alone.
test: .venv/dev
	$(MAKE) --no-print-directory --jobs 2 lint workers static
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest tests/bench/test_regression.py
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest bench/ --quick --ignore bench/bench_static.py

# One thread each, two more than two cores: tests of ranks, nodes and pages wait for each other. Of tests that share a
# fixture, worksteal gives a worker as many as it can.
workers: .venv/dev
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 4 --dist worksteal --ignore tests/bench/test_regression.py

static: .venv/dev
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest bench/bench_static.py --quick

# Material for MkDocs speaks of its successor in every build, unless it is told not to.
docs: .venv/dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: .venv/dev
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest bench/ --results
	$(BIN)/python bench/report.py

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv build site *.egg-info kernels/*.egg-info trainer/*.egg-info kernels/fangyan_kernels/*.so

# deepspeed and seqeval come as source and build in their own environments; the extension builds in
# this one, against the torch that it will run with.
.venv/installed: pyproject.toml trainer/pyproject.toml setup.py constraints.txt $(wildcard csrc/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "fangyan needs Python 3.10 or later, found " + sys.version.split()[0])'
	@command -v c++ >/dev/null || { echo "fangyan needs a C++ compiler (c++ on the path)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) --upgrade pip setuptools wheel
	$(PIP) torch ninja deepspeed seqeval
	$(PIP) --no-build-isolation --editable . --editable './trainer[cantonese]'
	touch $@

.venv/dev: .venv/installed
	$(PIP) --group dev
	touch $@
