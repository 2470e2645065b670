# Two commands: `make run` serves, `make test` proves. Both set everything up first, and say little when nothing changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/.stamps
SOURCES := $(wildcard src/diastole/kernels/csrc/*) CMakeLists.txt
PORT ?= 8000

SOAK_SECONDS ?= 600
FUZZ_REQUESTS ?= 20000

.PHONY: run test soak fuzz tiles install lint types imports size check format docs clean help

run: install  ## serve the embedded model on port $(PORT)
	@$(BIN)/diastole serve --port $(PORT)

test: install check  ## everything that CI runs
	@$(BIN)/python -m pytest --dist loadfile -n \
	  $$($(BIN)/python -c "from diastole.kernels.table import physical_cores; print(min(physical_cores(), 4))")

soak: install  ## ten minutes of overload, and whether anything was lost or leaked (SOAK_SECONDS=60 for less)
	@SOAK_SECONDS=$(SOAK_SECONDS) $(BIN)/python tools/soak.py

fuzz: install  ## malformed requests by the thousand, and whether any broke something (FUZZ_REQUESTS=2000 for fewer)
	@FUZZ_REQUESTS=$(FUZZ_REQUESTS) $(BIN)/python tools/fuzz.py

tiles: install  ## kernels for tile registers (AMX), tested on a processor with AVX-512 BF16 that has none
	@$(BIN)/cmake -S . -B build/tiles -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python \
	  -DCMAKE_BUILD_TYPE=Release -DDIASTOLE_EMULATED_TILES=ON > /dev/null
	@$(BIN)/cmake --build build/tiles > /dev/null
	@DIASTOLE_NATIVE="$$(ls build/tiles/_native*.so)" $(BIN)/python -m pytest tests/kernels -k amx -n 2

install: $(STAMPS)/package $(STAMPS)/model  ## the set-up alone
	@:

$(STAMPS)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"Python 3.11 or newer is needed, this is {v[0]}.{v[1]}: make PYTHON=python3.12 ...")'
	@echo "making $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@mkdir -p $(STAMPS)
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt pip
	@touch $@

# What builds the package is installed first, so that the build needs no environment of its own.
$(STAMPS)/requirements: $(STAMPS)/python pyproject.toml constraints.txt
	@echo "installing what Diastole is built with and stands on (a few minutes the first time)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt scikit-build-core nanobind ninja cmake torch
	@touch $@

$(STAMPS)/package: $(STAMPS)/requirements $(SOURCES)
	@echo "building the native operators"
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[dev,docs]'
	@touch $@

$(STAMPS)/model: $(STAMPS)/package src/diastole/assets/catalog.py
	@$(BIN)/diastole pull smollm2-135m
	@touch $@

check: lint types imports size  ## what can be said without running anything

lint:
	@$(BIN)/ruff check src tests tools
	@$(BIN)/ruff format --check -q src tests tools

types:
	@$(BIN)/mypy

imports:
	@$(BIN)/lint-imports --no-logo

size:
	@$(BIN)/python tools/size.py

format:  ## put the sources into form
	@$(BIN)/ruff check -q --fix src tests tools
	@$(BIN)/ruff format -q src tests tools

docs: install  ## the documentation as a site in build/site; first its generated pages
	@$(BIN)/python tools/reference.py
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict -q -d build/site
	@echo "build/site/index.html"

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache $(STAMPS)

help:
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 12
