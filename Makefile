# Two commands on a fresh machine with Python (>= 3.10) and make:
#   make demo    install the runtime, animate the example photo on the CPU, twice: zoom in, pan right
#   make test    install everything, lint, type-check, run all tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# torch's own index or a local wheel decides which build is taken; users get a range, CI pins one.
TORCH ?= torch>=2.9

.PHONY: demo test lint typecheck clean

$(VENV)/.runtime: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.dev: pyproject.toml
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

# The root folder is the package, whatever it is called: a link gives mypy the package's own name.
typecheck: $(VENV)/.dev
	mkdir -p .cache/types && ln -sfn ../.. .cache/types/consisti2v_rt
	cd .cache/types && MYPYPATH=. ../../$(BIN)/mypy --config-file ../../pyproject.toml --cache-dir ../mypy -p consisti2v_rt

test: lint typecheck
	$(BIN)/python -m pytest

clean:
	rm -rf $(VENV) .cache build dist *.egg-info
