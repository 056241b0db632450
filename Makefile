# Everything happens in a virtual environment of this folder's own; nothing else on the machine is touched.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export PYTHONSAFEPATH := 1

.PHONY: demo test lint bench clean
.DEFAULT_GOAL := demo

demo: $(VENV)/installed-demo
	$(BIN)/saccade demo --out report

test: $(VENV)/installed-dev
	$(BIN)/pytest

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "saccade needs Python 3.11 or newer: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
	    { echo "this Python cannot make virtual environments: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --upgrade pip

# The stamps are made last, so that an interrupted installation is taken up again.
$(VENV)/installed-demo: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --config-settings editable_mode=strict --editable '.[demo]'
	touch $@

# timm and open_clip ask for a torchvision whose own requirement would replace torch: they come without theirs.
$(VENV)/installed-dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --config-settings editable_mode=strict --editable '.[dev]'
	$(BIN)/python -m pip install --no-deps torchvision timm open_clip_torch
	touch $@

clean:
	rm -rf $(VENV) build dist report
