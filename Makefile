# Two commands on a fresh machine with Python (>= 3.10) and make:
#   make demo    install the runtime, animate the example photo on the CPU, twice: zoom in, pan right
#   make test    install everything, lint, type-check, build the documentation, run all tests but the rare ones
#   make test-all    the same with the rare ones, which take longest: what continuous integration runs
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# torch's own index or a local wheel decides which build is taken; users get a range, CI pins one.
TORCH ?= torch>=2.9
# Processes that run tests beside each other.
WORKERS ?= 2

.PHONY: demo test test-all lint typecheck docs clean

$(VENV)/.runtime: pyproject.toml setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.dev: pyproject.toml setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[export,dev]"
	touch $@ $(VENV)/.runtime

demo: $(VENV)/.runtime
	$(BIN)/consisti2v demo --prompt "zoom in" --output demo.mp4
	$(BIN)/consisti2v demo --prompt "pan right" --output demo-pan.mp4

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: $(VENV)/.dev
	$(BIN)/mypy

docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

test: lint typecheck docs
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --durations 20 -m "not rare"

test-all: lint typecheck docs
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --durations 60

clean:
	rm -rf $(VENV) .cache build dist src *.egg-info
