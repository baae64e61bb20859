# `make demo` and `make test` need only Python 3.10+ and make. VENV= lets several clones share one environment.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
ARGS ?=
# The suite starts processes of its own and every one of them is given a single thread.
JOBS ?= 2

# `make test-gpu`: the Python of an image of PyTorch, into which nothing is installed.
GPU_PYTHON ?= $(PYTHON)
# `make dist`: an environment to install the wheel into; without one it goes into a new and empty one, for this once.
DIST_VENV ?=
# `make dist`: a Python whose torch is linked, where there is no time to install one (5 GB).
TORCH_OF ?=
# `make environments`: some of them, as in ONLY="oldest newest".
ONLY ?=

.PHONY: demo test test-gpu lint bench dist environments docs clean
.DEFAULT_GOAL := help

help:
	@echo "make demo   fine-tune a small ViT with the monitor attached (says after ten steps how long it takes)"
	@echo "make test   tests, doctests, ruff, mypy --strict, import directions"
	@echo "make bench  time and memory of every map, side by side with other libraries"
	@echo "make test-gpu  what only a GPU can show; GPU_PYTHON= is a Python with torch, lightning, timm, torchmetrics"
	@echo "make docs   the documentation as a site, in site/; warnings are errors"
	@echo "make dist   build sdist and wheel, install the wheel into an empty environment, and run the demo from it"
	@echo "make environments  checks with one Lightning or both, with the oldest and the newest of all that is asked for; ONLY=oldest"

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

# Docstrings are read, and nothing is imported: the site needs what builds it, and not the gigabytes that the package needs.
$(VENV)/.installed-docs: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(VENV)/itself .
	PYTHONPATH=$(VENV)/itself $(BIN)/python -c "from importlib.metadata import requires; \
	print(*[one.split(';')[0] for one in requires('lightning-attngrad') if 'extra ==' in one and 'docs' in one.split(';')[1]], sep='\n')" \
	> $(VENV)/docs-requirements.txt
	$(BIN)/python -m pip install --quiet --requirement $(VENV)/docs-requirements.txt
	touch $@

docs: $(VENV)/.installed-docs
	PYTHONPATH="$(CURDIR)" NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

test-gpu:
	PYTHONPATH="$(CURDIR)" $(GPU_PYTHON) -m tests.gpu $(ARGS)

# Needs 15 GB in TMPDIR while it runs: docs/environments.md.
environments:
	PYTHONPATH="$(CURDIR)" $(PYTHON) -m tests.environments $(ONLY)

# Outside the checkout, and without it on the path: what runs is what is in the wheel, which is built out of the sdist.
dist:
	rm -rf dist
	set -e; place="$$(mktemp -d)"; trap 'rm -rf "$$place"' EXIT; \
	$(PYTHON) -m venv "$$place/tools"; \
	"$$place/tools/bin/python" -m pip install --quiet build; \
	"$$place/tools/bin/python" -m build --outdir dist . > "$$place/build.txt" || { cat "$$place/build.txt"; exit 1; }; \
	wheel="$$(echo "$(CURDIR)"/dist/*.whl)"; \
	git ls-files lightning_attngrad > "$$place/tracked.txt"; \
	"$$place/tools/bin/python" -c "import sys, zipfile; from pathlib import Path; \
	held = set(zipfile.ZipFile(sys.argv[1]).namelist()); tracked = Path(sys.argv[2]).read_text().split(); \
	lacks = [one for one in tracked if one not in held]; \
	sys.exit(f'the wheel lacks {lacks}' if lacks or not tracked else 0)" "$$wheel" "$$place/tracked.txt"; \
	environment="$(abspath $(DIST_VENV))"; test -n "$$environment" || environment="$$place/environment"; \
	test -x "$$environment/bin/python" || $(PYTHON) -m venv "$$environment"; \
	test -z "$(TORCH_OF)" || $(PYTHON) tests/environments/link_torch.py "$(TORCH_OF)" "$$environment/bin/python"; \
	"$$environment/bin/python" -m pip install --quiet "lightning-attngrad[demo] @ file://$$wheel"; \
	"$$environment/bin/python" -m pip install --quiet --no-deps --force-reinstall "$$wheel"; \
	cd "$$place"; unset PYTHONPATH; \
	"$$environment/bin/python" -c "import lightning_attngrad as one; print(one.__version__, 'of', one.__file__); \
	assert 'site-packages' in one.__file__"; \
	"$$environment/bin/lightning-attngrad" --help > /dev/null; \
	"$$environment/bin/lightning-attngrad" audit --help > /dev/null; \
	"$$environment/bin/lightning-attngrad" demo --epochs 1 --max-steps 20 --accelerator cpu --output demo $(ARGS); \
	"$$environment/bin/python" -c "from importlib.metadata import entry_points as of; \
	[of(group=f'{one}.callbacks_factory')['attngrad'].load()() for one in ('lightning.pytorch', 'pytorch_lightning')]"; \
	for made in "events.*" "*.png" report.html; do find demo -name "$$made" | grep -q . || { echo "no $$made"; exit 1; }; done; \
	echo "they work: $$(cd "$(CURDIR)/dist" && echo *)"

clean:
	rm -rf .venv dist site .pytest_cache .mypy_cache .ruff_cache lightning_logs attngrad_demo
