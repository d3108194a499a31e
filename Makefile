# Every target does its own set-up: a fresh clone needs nothing but make and Python >= 3.11.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install -c constraints.txt
# Each process takes from the others' tests when it has done its own, so all end together.
PYTEST := $(BIN)/python -m pytest -n auto --dist worksteal
# What runs kernels, and what compares their sums with torch's.
ON_EACH_ISA := $(wildcard tests/runtime/test_native*.py) tests/runtime/test_reference_sums.py tests/runtime/test_batch.py tests/ensemble tests/core tests/nn/test_colour_networks.py tests/nn/test_residual.py

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-isas lint kernels sanitize clean
.DELETE_ON_ERROR:

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1	/'

demo: $(VENV)/installed  ## train on two moons and draw two_moons.png
	$(BIN)/bayesbin demo two-moons --out two_moons.png

test: $(VENV)/installed  ## run the tests, but for the slow ones
	$(PYTEST)

test-slow: $(VENV)/installed  ## run the tests that take long
	$(PYTEST) -m slow

test-isas: $(VENV)/installed  ## run kernel and prediction tests under each other instruction set, two threads
	for isa in $$($(BIN)/python -c 'from bayesbin.runtime import native_backend as n; print(*n.isas()[:-1] if n.available() else ())'); do \
		case $$isa in portable) aten=default;; *) aten=$$isa;; esac; \
		echo "== kernels: $$isa, torch: $$aten"; \
		BAYESBIN_KERNEL=$$isa ATEN_CPU_CAPABILITY=$$aten OMP_NUM_THREADS=2 $(PYTEST) $(ON_EACH_ISA) || exit 1; \
	done

lint: $(VENV)/installed-dev  ## ruff and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

kernels: $(VENV)/installed-dev  ## build the compiled kernels beside their sources, for working on them
	$(PIP_INSTALL) nanobind
	cmake -S . -B build/kernels -DBAYESBIN_INPLACE=ON -DBAYESBIN_WERROR=ON -DPython_EXECUTABLE=$(abspath $(BIN)/python)
	cmake --build build/kernels

sanitize:  ## run the kernels' own tests under the address and undefined-behaviour sanitizers
	cmake -S . -B build/sanitize -DBAYESBIN_SANITIZE=ON -DBAYESBIN_WERROR=ON
	cmake --build build/sanitize
	build/sanitize/test_driver

clean:  ## remove the virtual environment, caches and build outputs
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache bayesbin/runtime/_kernels*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps are touched last: an installation that fails leaves none behind, so the next run tries
# again. torch comes first and by itself, being by far the largest download. The package's own
# installation compiles the kernels, or does without them where there is no compiler.
KERNELS := CMakeLists.txt $(wildcard bayesbin/runtime/native/*) $(wildcard bayesbin/runtime/native/*/*)
$(VENV)/installed: pyproject.toml constraints.txt $(KERNELS)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "bayesbin needs Python 3.11 or newer, but $(PYTHON) is " + sys.version.split()[0] + "; name another one: make PYTHON=python3.11 ...")'
	rm -f $@
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) torch==2.13.0
	$(PIP_INSTALL) -e '.[test]'
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(PIP_INSTALL) -e '.[dev]'
	touch $@
