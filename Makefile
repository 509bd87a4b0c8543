# Two commands: `make app` draws and answers in a browser, `make test` runs every check.
# A fresh Debian with python3 (3.11 or newer) and make is enough; see tools/install.sh.

VENV ?= .venv
HOST ?= 127.0.0.1
PORT ?= 7860
PYTHON ?= python3
WORKERS ?= 2
BIN := $(VENV)/bin

# The stamps make a second run quick: an install is repeated only when its inputs change or
# another build of torch is asked for. Each install removes the stamps of those before it.
STAMP := $(VENV)/.installed$(BRIDGE_TORCH:%=-%)
INPUTS := pyproject.toml setup.py constraints.txt tools/install.sh

.PHONY: app test test-slow fuzz parity bench docs lint clean
.DEFAULT_GOAL := app

app: $(STAMP)
	@$(BIN)/python demos/app.py --host $(HOST) --port $(PORT)

test: $(STAMP)-test lint
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not slow" -n $(WORKERS) --dist loadfile

test-slow: $(STAMP)-test
	@$(BIN)/python -m pytest -q -m slow

# The fuzzers of the tests, sixty times as many cases: about an hour. SEED=100000 tries others.
# What was tried, and what went wrong, is written whether or not all went well.
fuzz: $(STAMP)-test
	@BRIDGE_FUZZ_TIMES=$(or $(TIMES),60) BRIDGE_FUZZ_SEED=$(or $(SEED),0) \
		$(BIN)/python -m pytest -q tests/fuzz \
		--fuzz-results benchmarks/results/fuzz.json --fuzz-page docs/fuzzing.md

# Runs the peers' own code beside ours, in an environment of its own. PEERS names the folder of
# the clones that tests/parity/peers.py lists.
parity:
	@PYTHON=$(PYTHON) tools/parity.sh .venv-parity
	@BRIDGE_PARITY_STRICT=1 .venv-parity/bin/python -m pytest -q tests/parity \
		--parity-results benchmarks/results/parity.json

lint: $(STAMP)-test
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/mypy --no-error-summary

bench: $(STAMP)-test
	@$(BIN)/python benchmarks/compositional.py all

# The documents and the API reference as a site, in build/site; nothing is fetched for it.
docs: $(STAMP)-docs
	@$(BIN)/python tools/docs_site.py

$(STAMP): $(INPUTS)
	@rm -f $(VENV)/.installed*
	@PYTHON=$(PYTHON) tools/install.sh $(VENV) "[app]"
	@touch $@

$(STAMP)-test: $(INPUTS) tools/browser.sh
	@rm -f $(VENV)/.installed*
	@PYTHON=$(PYTHON) tools/install.sh $(VENV) "[test]"
	@tools/browser.sh $(BIN)/python
	@touch $@ $(STAMP)

$(STAMP)-docs: $(INPUTS)
	@rm -f $(VENV)/.installed*
	@PYTHON=$(PYTHON) tools/install.sh $(VENV) "[docs]"
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
