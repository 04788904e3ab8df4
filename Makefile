# Everything a newcomer needs: `make serve`, `make test`. Both build the environment first, from pyproject.toml alone.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=
PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

.PHONY: serve test lint parity slow deviceless clean

serve: $(VENV)/.installed
	$(BIN)/python scripts/serve.py --mesh $(MESH) $(ARGS)

test: $(VENV)/.tested
	$(PYTEST) $(ARGS)

lint: $(VENV)/.linted
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# What CI runs besides: parity with transformers (needs torch), longer tests, compiling for a GPU that is not there.
parity: $(VENV)/.tested
	$(PYTEST) --dist worksteal -m torch --junitxml=build/parity.xml $(ARGS)

slow: $(VENV)/.tested
	$(PYTEST) -m slow --junitxml=build/slow.xml $(ARGS)

deviceless: $(VENV)/.tested
	$(PYTEST) -m deviceless $(ARGS)

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "epdjax needs Python 3.11 or newer; name one with PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: $(VENV)/.created pyproject.toml
	$(BIN)/pip install --quiet --editable .
	@touch $@

$(VENV)/.tested: $(VENV)/.created pyproject.toml
	$(BIN)/pip install --quiet --editable ".[test]"
	@touch $@ $(VENV)/.installed

$(VENV)/.linted: $(VENV)/.created pyproject.toml
	$(BIN)/pip install --quiet --editable ".[test,lint]"
	@touch $@

clean:
	rm -rf $(VENV) build/compiled-for-tests
