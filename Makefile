# make lab        install once, open the course in JupyterLab
# make test       everything: lint, types, unit tests, every notebook, the widgets in a browser
# make check      the fast part of it, under two minutes
# make notebooks  run all notebooks (or NB="notebooks/03_mla.ipynb") and store their outputs
# make bench      the measurements
# make model      train the shipped model anew (3,600 steps, half an hour)
#
# make lab PYTHON=python3.12     another Python, from 3.10 to 3.13
# make lab PIP_ARGS="..."        options for pip, for instance the CPU index that pytorch.org names (Linux)

PYTHON ?= python3
PIP_ARGS ?=
WORKERS ?= 3
NB ?= $(wildcard notebooks/[0-9]*.ipynb)

BIN := .venv/bin
# three for two cores, as a browser is waited for; what takes longest comes first: it, then the notebooks
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadscope --no-loadscope-reorder
NBVAL := --nbval --nbval-current-env --nbval-sanitize-with tests/nbval.cfg --nbval-cell-timeout=300
EXECUTE := $(BIN)/jupyter nbconvert --to notebook --execute --inplace --ExecutePreprocessor.timeout=600 \
	--ExecutePreprocessor.record_timing=False --ExecutePreprocessor.store_widget_state=False
STRIP := $(BIN)/nbstripout --keep-output --keep-count --keep-id \
	--extra-keys "metadata.widgets metadata.language_info.version cell.metadata.execution"

# What is imported is compiled then, once, whatever the environment says: to compile all that is installed takes longer.
export PYTHONDONTWRITEBYTECODE :=
INSTALL := $(BIN)/python -m pip install --no-compile $(PIP_ARGS)

.PHONY: lab test check lint notebooks bench model

lab: .venv/installed
	$(BIN)/jupyter lab notebooks/00_start.ipynb

test: lint
	$(PYTEST) $(wildcard notebooks/[0-9]*.ipynb) tests $(NBVAL)

check: lint
	$(PYTEST) tests -m "not slow and not browser"

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

notebooks: .venv/installed-dev
	OMP_NUM_THREADS=1 $(EXECUTE) $(NB)
	$(BIN)/jupyter nbconvert --to notebook --inplace --CoalesceStreamsPreprocessor.enabled=True $(NB)  # pieces of a streamed text
	$(STRIP) $(NB)
	$(BIN)/python -m minids.ledger

bench: .venv/installed-dev
	for file in tests/benchmarks/*.py; do $(BIN)/python $$file || exit 1; done

model: .venv/installed
	$(BIN)/minids train --preset tiny --steps 3600 --lr 2e-3 --primer 6000 --threads 1 --out runs/tiny
	$(BIN)/python -c 'import torch; from minids import checkpoint as c; c.save_model("assets/tiny", *c.load_model("runs/tiny"), dtype=torch.bfloat16)'
	$(BIN)/python -m minids.drafter  # fits this model and no other

# Installed again when the list of what is needed has changed.
.venv/installed: pyproject.toml requirements.txt | .venv/bin/python
	$(INSTALL) -r requirements.txt
	@touch $@

.venv/installed-dev: pyproject.toml requirements.txt | .venv/bin/python
	$(INSTALL) -e ".[dev]"
	@touch $@ .venv/installed

.venv/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 10) <= v <= (3, 13) or sys.exit("minids needs Python 3.10 to 3.13 and $(PYTHON) is %d.%d. Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)" % v)'
	$(PYTHON) -m venv .venv
