# `make figures` and `make test` set up .venv by themselves; the second time they start at once.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
SECONDS := 600
# As root, or as who may become root without a password.
CHROMIUM := sudo=; test "`id -u`" = 0 || sudo="sudo -n"; \
  command -v apt-get >/dev/null && $$sudo apt-get update -qq && $$sudo apt-get install -y -qq chromium fonts-dejavu-core

.PHONY: help figures test test-slow test-ui fuzz coverage lab bench zoo atlas refresh lint docs clean
.DEFAULT_GOAL := help

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1@/p' Makefile | awk -F@ '{ printf "%-18s%s\n", $$1, $$2 }'

figures: $(INSTALLED)  ## execute every notebook; the figures land in figures/, all of it in runs/report.html
	@OMP_NUM_THREADS=1 $(BIN)/python -m redlab.cli report --jobs 2

test: $(INSTALLED)  ## the tests
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(INSTALLED)  ## the tests that take minutes
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m slow

test-ui: $(INSTALLED)  ## the notebooks and their sliders in JupyterLab, in a real browser
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[dev,ui]"
	@PYTHONPATH=tests $(BIN)/python -c 'from chromium import find_chromium; find_chromium()' 2>/dev/null || { $(CHROMIUM); } || { \
	  echo "Chromium is not here, and can be installed by root only and where there is apt-get: install it, then make test-ui again" >&2; exit 1; }
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m ui -v

fuzz: $(INSTALLED)  ## damaged files for ten minutes (SECONDS=60: for one), at whatever opens files
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz --seconds $(SECONDS)

coverage: $(INSTALLED)  ## the tests, and the lines that none of them runs; under 95 % it fails
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --cov

lab: $(INSTALLED)  ## JupyterLab on notebooks/00_start_here.ipynb
	@$(BIN)/python -m redlab.cli lab

bench: $(INSTALLED)  ## the benchmarks, on a machine that does nothing else
	@for bench in hashing merging surgery latency splitting pruned_latency masks startup sweeping exploring; do $(BIN)/python -m benchmarks.$$bench || exit 1; done

zoo: $(INSTALLED)  ## couple, merge, prune and export torchvision's classifiers, timm's families; goes on where it stopped
	@$(BIN)/python -m benchmarks.zoo
	@$(BIN)/python -m benchmarks.zoo_timm
	@OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.zoo_export

atlas: $(INSTALLED)  ## measure the redundancy of every network for notebook 11; goes on where it stopped
	@OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.atlas

refresh: $(INSTALLED)  ## execute the notebooks and write them back with their outputs
	@OMP_NUM_THREADS=1 $(BIN)/python -m redlab.cli refresh

lint: $(INSTALLED)  ## style, which module imports which, and types
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m ruff format --check .
	@$(BIN)/lint-imports --no-logo --no-cache
	@$(BIN)/python -m mypy

docs: $(INSTALLED)  ## one site of the pages, the notebooks and the reference, into build/docs/; warnings are errors
	@OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -q -W --keep-going -c docs -d build/doctrees . build/docs
	@echo "build/docs/index.html"

clean:  ## remove .venv and caches; runs/ and data/cache/ stay
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache .hypothesis build dist docs/reference
	find . -name __pycache__ -prune -exec rm -rf {} +

# The stamp is touched last, so that an installation that failed is tried again.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "redlab needs Python 3.11 or later; $(PYTHON) is `$(PYTHON) --version 2>&1`. Try: make PYTHON=python3.12" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv .venv
	@echo "Installing into .venv: PyTorch, JupyterLab and the rest, about 3 GB to download; this takes some minutes ..."
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@
	@echo "Installed."
