# Cria: one command each. `make help` lists them. Needs only make and Python 3.11-3.13.

PROFILE ?= course
SEED ?= 0
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?=
LAB_ARGS ?=

export GOMP_SPINCOUNT ?= 1000# how long a waiting thread spins: lib/cria/machine.py

.PHONY: help course test lint lab book clean distclean constraints again
.DEFAULT_GOAL := help

help:
	@echo "make course   run every notebook in order, then print the scoreboard"
	@echo "              (PROFILE=smoke for a quick look, PROFILE=deep for a larger model)"
	@echo "make lab      open the notebooks in JupyterLab, on this computer only"
	@echo "make test     check style and run the tests"
	@echo "make lint     check style only"
	@echo "make book     make a web book of the notebooks that make course ran"
	@echo "make clean    remove build/: results, trained stages, the book"
	@echo "make distclean  remove .venv as well"
	@echo "The first of these sets up .venv by itself. Another Python: make PYTHON=..."

course: $(VENV)/.ready
	@$(BIN)/cria run --profile $(PROFILE) --seed $(SEED)

lab: $(VENV)/.ready
	@echo "JupyterLab opens on this computer only; Ctrl-C stops it."
	@$(BIN)/python -m jupyterlab --ip=127.0.0.1 --ServerApp.root_dir=notebooks $(LAB_ARGS)

test: lint
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -q

lint: $(VENV)/.ready-dev
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m ruff format --check .

book: $(VENV)/.ready-book
	@$(BIN)/python book/prepare.py
	@$(BIN)/python -m sphinx -W --keep-going -q -b html -c book build/book/source build/book/html
	@echo "The book is ready: build/book/html/index.html"

clean:
	rm -rf build .pytest_cache .ruff_cache lib/*.egg-info
	find lib tests -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)

# ---- set-up -------------------------------------------------------------------
# tools/setup.sh writes .venv/.ready last, with this folder's name in it: a virtual
# environment stops working when its folder is moved, or when its Python is gone.

ifneq ($(shell test -x $(BIN)/python && cat $(VENV)/.ready 2>/dev/null),$(CURDIR))
$(VENV)/.ready: again
endif
ifneq ($(wildcard $(VENV)/.unfinished),)
$(VENV)/.ready: again
endif
again:

$(VENV)/.ready: requirements.txt constraints.txt pyproject.toml
	@PYTHON="$(PYTHON)" sh tools/setup.sh

$(VENV)/.ready-%: $(VENV)/.ready
	@sh tools/setup.sh $*

# For maintainers with uv: pin everything anew (universal, and without addresses).
constraints:
	@mkdir -p build && printf '%s\n' torch==2.13.0 trl==1.12.0 > build/held.txt
	@uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 \
	  -c build/held.txt --no-emit-index-url --no-emit-find-links --no-annotate \
	  --no-header -q -o constraints.txt
	@if grep -n '://' constraints.txt; then exit 1; fi
