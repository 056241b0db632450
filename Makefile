# Everything happens in a virtual environment of this folder's own; nothing else on the machine is touched.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
FOLDERS := $(shell find bindings reference kernels bench -type d -not -name __pycache__)
INSTALL := $(BIN)/python -m pip install --config-settings editable_mode=strict --editable
export PYTHONSAFEPATH := 1

.PHONY: demo test gpu lint docs clean
.DEFAULT_GOAL := demo

demo: $(VENV)/installed-demo
	$(BIN)/saccade demo --out report

test: $(VENV)/installed-dev
	$(BIN)/pytest --numprocesses auto --dist worksteal

# On a machine with a GPU: its tests, then the speed of what they found right. A run that is interrupted goes on.
gpu: $(VENV)/installed-dev
	$(BIN)/pytest -m gpu --numprocesses auto --dist worksteal
	$(BIN)/saccade bench --suite deck --device cuda --graph --dtype bfloat16 \
	    --json bench/results/deck-gpu.json --out report/bench

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python

# Every stamp is made last, so that what was interrupted is taken up again. A strict editable installation links
# files one by one, so a folder that gains or loses a file is installed again.
$(VENV)/made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "saccade needs Python 3.11 or newer: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
	    { echo "this Python cannot make virtual environments: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --upgrade pip
	touch $@

$(VENV)/installed-demo: pyproject.toml $(FOLDERS) | $(VENV)/made
	$(INSTALL) '.[demo]'
	touch $@

# timm and open_clip ask for a torchvision whose own requirement would replace torch: they come without theirs.
$(VENV)/installed-dev: pyproject.toml $(FOLDERS) | $(VENV)/made
	$(INSTALL) '.[dev]'
	$(BIN)/python -m pip install --no-deps torchvision==0.29.2 timm==1.0.31 open_clip_torch==3.3.0
	touch $@

docs: $(VENV)/installed-dev
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) build dist report site
