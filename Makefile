# make demo: install into .venv and protect sample pictures. make test: install, lint, type-check, test.
# make man: write the manual page build/backfire.1.
# make docs: build the documentation as a site.
# TORCH picks the torch build: make test TORCH=torch==2.13.0
PYTHON ?= python3
TORCH ?= torch
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo docs man test
.DEFAULT_GOAL := help

help:
	@sed -n '1,4s/^# //p' Makefile

$(BIN)/python:
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Backfire needs Python 3.11 or newer; set PYTHON="'
	$(PYTHON) -m venv $(VENV)

# torch is installed first, so that the build named by TORCH satisfies the packages that need torch.
$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check '$(TORCH)'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	touch $@

demo: $(VENV)/.installed
	rm -rf demo
	$(BIN)/backfire demo demo

man: $(VENV)/.installed
	mkdir -p build
	$(BIN)/backfire man > build/backfire.1

test: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest --numprocesses=auto --maxprocesses=8 --dist=loadscope --no-loadscope-reorder

# Dead links and missing anchors are errors; it works offline. To read the site: python -m http.server -d site
docs: $(VENV)/.installed-docs
	$(BIN)/python -m docs.generate
	$(BIN)/zensical build --clean --strict
