# Every target makes .venv if it is missing. Nothing else has to be set up: `make demo` or `make test` in a fresh clone.
# An existing environment can be used instead: make test VENV=path/to/environment

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
SETUP := settings.ini setup.py pyproject.toml constraints.txt
# tokenizers warn after every fork otherwise
export TOKENIZERS_PARALLELISM = false

.DEFAULT_GOAL := help
.PHONY: help demo test fuzz lint lab docs sync notebooks head results rivals experiments clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# Stamps, so that nothing is installed twice; they age when the requirements do. What development needs includes what running needs.
$(VENV)/.runtime: $(SETUP) | $(BIN)/python
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	touch $@

$(VENV)/.development: $(SETUP) | $(BIN)/python
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[dev]"
	touch $@ $(VENV)/.runtime

demo: $(VENV)/.runtime  ## fill a call from a sentence with the embedded base (fetched on first use)
	$(BIN)/smoldiff demo

# A notebook imports the exported files of others, so export comes first.
# Notebooks are tested by one worker: each worker would import torch and transformers anew, which takes longer than the cells do.
# pytest comes last: its last line says how many tests passed.
test: $(VENV)/.development  ## run every notebook's tests, then pytest
	$(BIN)/nbdev_export
	$(MAKE) --no-print-directory lint
	$(BIN)/nbdev_test --n_workers 1 --timing
	$(BIN)/python -m pytest

fuzz: $(VENV)/.development  ## random schemas filled by random logits, a million (SMOLDIFF_FUZZ: another number): every call must validate
	SMOLDIFF_FUZZ=$${SMOLDIFF_FUZZ:-1000000} $(BIN)/python -m pytest tests/test_valid.py

lint: $(VENV)/.development  ## ruff: real errors in modules, a little more in tests and scripts
	$(BIN)/ruff check -q smoldiff tests scripts setup.py

lab: $(VENV)/.development  ## open JupyterLab on the notebooks
	$(BIN)/jupyter lab nbs

docs: $(VENV)/.development  ## render the pages to _docs/ (Quarto where installed, else pandoc)
	$(BIN)/python scripts/docs.py

sync: $(VENV)/.development  ## notebooks -> modules, and clean the notebooks
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean

notebooks: $(VENV)/.development  ## execute all notebooks from fresh kernels and store their outputs
	$(BIN)/nbdev_export
	$(BIN)/python scripts/notebooks.py

head: $(VENV)/.development  ## train a head like the shipped one, in its place (SMOLDIFF_DATA)
	@test -n "$(SMOLDIFF_DATA)" || { echo "make head needs SMOLDIFF_DATA, the folder with train/ and valid/" >&2; exit 1; }
	$(BIN)/smoldiff train --config smoldiff/heads/smollm2-135m/config.yaml --data-dir $(SMOLDIFF_DATA) --out smoldiff/heads/smollm2-135m

results: $(VENV)/.runtime  ## measure the shipped head, write results/ and the README's table (hours without a GPU; SMOLDIFF_DATA for validation)
	for what in bfcl bfcl-auto $(if $(SMOLDIFF_DATA),validation decoding reach); do $(BIN)/python scripts/measure.py $$what || exit 1; done
	$(BIN)/python scripts/results.py

rivals: $(VENV)/.development  ## measure the same base under XGrammar, and alone, on the same sets, and how long each takes
	for by in rival free; do for what in bfcl $(if $(SMOLDIFF_DATA),validation); do \
		$(BIN)/python scripts/measure.py $$what --by $$by || exit 1; done; done
	$(BIN)/python scripts/measure.py latency

experiments: $(VENV)/.development  ## train the small heads that nbs/experiments shows (hours without a GPU; SMOLDIFF_DATA)
	for what in layers order unit seeds parts sources tools; do $(BIN)/python scripts/experiments.py $$what || exit 1; done

clean:  ## remove what can be made again, except the environment
	rm -rf _docs _proc build *.egg-info .pytest_cache .ruff_cache .hypothesis nbs/nbdev.yml nbs/sidebar.yml
	find nbs smoldiff tests scripts -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf
