# make book   run the chapters, build the book, say where it is
# make test   check the code and run the tests
# make lab    open the chapters in JupyterLab
# make links  check the book's links to other sites, which needs a network
# make clean  remove what make book made: _build, but neither the environment nor your own runs
# PROFILE=gpu, JOBS=4 and PYTHON=python3.12 choose other than the defaults.

PYTHON ?= python3
PROFILE ?= quick
JOBS ?=
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: book test lab links clean

book: .venv/installed-book
	@$(BIN)/nadkit build --profile $(PROFILE) $(if $(JOBS),--jobs $(JOBS))

test: .venv/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	find book -name '*.ipynb' -not -path '*/.*' -exec $(BIN)/nbstripout --verify --keep-id {} +
	@$(BIN)/python -m compileall -q nadkit # once, where Python may not write it in each process that tests start
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not alone' --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder --durations 10
	$(BIN)/python -m pytest -m alone --durations 5

lab: .venv/installed-lab
	$(BIN)/jupyter lab book

links: book
	$(BIN)/jupyter-book build _build/stage --path-output _build/links --builder custom --custom-builder linkcheck

clean:
	rm -rf _build

.venv/installed-book: pyproject.toml | $(BIN)/python
	@echo 'installing what the book needs into .venv (PyTorch is large: this takes minutes)'
	@$(PIP) --editable '.[book]'
	@touch $@

.venv/installed-lab: pyproject.toml | $(BIN)/python
	@echo 'installing JupyterLab and what the book needs into .venv (PyTorch is large: this takes minutes)'
	@$(PIP) --editable '.[book,lab]'
	@touch $@

.venv/installed-dev: pyproject.toml | $(BIN)/python
	@echo 'installing what the tests need into .venv (PyTorch is large: this takes minutes)'
	@$(PIP) --editable '.[book,cluster,dev]'
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or newer is needed, and '$(PYTHON)' is not: $$($(PYTHON) --version 2>&1)."; \
	  echo 'Name another one: make PYTHON=python3.12 book'; exit 1; }
	@$(PYTHON) -m venv .venv || { rm -rf .venv; \
	  echo "'$(PYTHON) -m venv' failed; on Debian and Ubuntu install python3-venv first."; exit 1; }
