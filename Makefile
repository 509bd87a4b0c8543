# Two commands: `make app` draws and answers in a browser, `make test` runs every check.
# A fresh Debian with python3 (3.11 or newer) and make is enough; see tools/install.sh.

VENV ?= .venv
HOST ?= 127.0.0.1
PORT ?= 7860
PYTHON ?= python3
BIN := $(VENV)/bin

.PHONY: app test test-slow bench lint clean
.DEFAULT_GOAL := app

app: $(VENV)/.installed
	@$(BIN)/python demos/app.py --host $(HOST) --port $(PORT)

test: $(VENV)/.installed-test lint
	@$(BIN)/python -m pytest -q -m "not slow"

test-slow: $(VENV)/.installed-test
	@$(BIN)/python -m pytest -q -m slow

lint: $(VENV)/.installed-test
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/mypy --no-error-summary

bench: $(VENV)/.installed-test
	@$(BIN)/python benchmarks/compositional.py all

# The stamps make a second run quick: an install is repeated only when its inputs change.
INPUTS := pyproject.toml setup.py constraints.txt tools/install.sh

$(VENV)/.installed: $(INPUTS)
	@PYTHON=$(PYTHON) tools/install.sh $(VENV)
	@touch $@

$(VENV)/.installed-test: $(INPUTS) tools/browser.sh
	@PYTHON=$(PYTHON) tools/install.sh $(VENV) "[test]"
	@tools/browser.sh $(BIN)/python
	@touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
