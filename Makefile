# `make demo` and `make test` need only Python 3.10+ and make. VENV= lets several clones share one environment.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
ARGS ?=
# The suite starts processes of its own and every one of them is given a single thread.
JOBS ?= 2

.PHONY: demo test lint bench clean
.DEFAULT_GOAL := help

help:
	@echo "make demo   fine-tune a small ViT with the monitor attached (about three minutes)"
	@echo "make test   tests, doctests, ruff, mypy --strict, import directions"
	@echo "make bench  time and memory of every map, side by side with other libraries"

# Stamps carry the extras and the dependency list, so that a changed pyproject.toml installs again.
# This clone is put on PYTHONPATH rather than installed: a shared VENV then never runs another clone's code.
$(VENV)/.installed-%: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[$*]"
	touch $@

demo: $(VENV)/.installed-demo
	PYTHONPATH="$(CURDIR)" $(BIN)/python -m lightning_attngrad.cli demo $(ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	PYTHONPATH="$(CURDIR)" $(BIN)/python -m mypy

test: lint
	PYTHONPATH="$(CURDIR)" OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) $(ARGS)

bench: $(VENV)/.installed-dev $(VENV)/.installed-bench
	PYTHONPATH="$(CURDIR)" $(BIN)/python -m benchmarks.maps $(ARGS)

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache lightning_logs attngrad_demo
