# make demo: install into .venv and protect sample pictures in demo/ (DEMO='demo-2 --fetch': in demo-2/, also against published models). make test: install, lint, type-check, test.
# make coverage: run the tests and list what they do not execute.
# make man: write the manual page build/backfire.1.
# make docs: build the documentation as a site.
# make dist: sdist and wheel of the last commit in dist/. make deb: a Debian package. make notes: its release notes. make sbom: what it ships, and the licences.
# TORCH picks the version of torch: make test TORCH=torch==2.13.0
PYTHON ?= python3
TORCH ?= torch
VENV ?= .venv
DEMO ?= demo
BIN := $(VENV)/bin
CORES := $(shell getconf _NPROCESSORS_ONLN)
# Many tests wait for a daemon; twice as many processes of tests as cores keep the cores busy.
TESTS := $(BIN)/pytest --numprocesses=$$(( $(CORES) < 4 ? 2 * $(CORES) : 8 )) --dist=loadscope --no-loadscope-reorder --durations=40
# In memory where it has room and runs programs: a job waits for the disk some twenty times.
MEMORY := $(shell test -z "$$TMPDIR" && test "$$(df --output=avail /dev/shm 2>&1 | tail -n 1)" -gt 4194304 2>&1 && \
	! findmnt --noheadings --output OPTIONS /dev/shm | grep --quiet noexec && echo TMPDIR=/dev/shm)

.PHONY: coverage deb demo dist docs man notes sbom test
.DEFAULT_GOAL := help

help:
	@sed -n '1,6s/^# //p' Makefile

$(BIN)/python:
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Backfire needs Python 3.11 or newer; set PYTHON="'
	$(PYTHON) -m venv $(VENV)

# torch is installed first, so that the version named by TORCH satisfies the packages that need torch.
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

$(VENV)/.installed-release: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[release]'
	touch $@

demo: $(VENV)/.installed
	$(BIN)/backfire demo $(DEMO)

man: $(VENV)/.installed
	mkdir -p build
	$(BIN)/backfire man > build/backfire.1

test: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(MEMORY) $(TESTS)

coverage: $(VENV)/.installed-dev
	$(BIN)/coverage erase
	$(MEMORY) $(BIN)/coverage run -m $(notdir $(TESTS))
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

# Dead links and missing anchors are errors; it works offline. To read the site: python -m http.server -d site
docs: $(VENV)/.installed-docs
	$(BIN)/python -m docs.generate
	$(BIN)/zensical build --clean --strict

dist: $(VENV)/.installed-release
	rm -f dist/*.whl dist/*.tar.gz
	$(BIN)/python packaging/dist.py
	$(BIN)/twine check --strict dist/*.whl dist/*.tar.gz

# On the Debian release that it is for; packaging/test-deb tries it. It wants a CPU build of torch, which PyPI lacks:
# PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make deb TORCH=torch==2.13.0+cpu
deb: dist
	rm -f dist/*.deb
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) TORCH='$(TORCH)' packaging/deb/build dist/*.whl dist

notes:
	@$(PYTHON) packaging/notes.py

# What a wheel brings along where it is installed, with EXTRAS=heic,text or without. pip-audit asks for known faults,
# which needs a network; a package that it cannot look up is an error. It knows no local versions such as 2.13.0+cpu.
sbom: dist
	rm -rf build/shipped
	$(PYTHON) -m venv build/shipped
	build/shipped/bin/python -m pip install --quiet --disable-pip-version-check '$(TORCH)' "$$(echo dist/*.whl)$(EXTRAS:%=[%])"
	$(BIN)/cyclonedx-py environment --output-reproducible --output-file dist/backfire.cdx.json build/shipped/bin/python
	$(PYTHON) packaging/licences.py dist/backfire.cdx.json > dist/LICENCES.md
	build/shipped/bin/python -m pip list --disable-pip-version-check --format=freeze | sed '/^backfire=/d; s/+.*//' > build/shipped.txt
	-$(BIN)/pip-audit --progress-spinner off --strict --no-deps --disable-pip --requirement build/shipped.txt
