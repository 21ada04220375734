# One command each: demo, test, check, bench, golden, upstream. Everything runs in .venv, which is made on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

.PHONY: demo test check bench golden upstream clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

demo: $(READY)
	$(BIN)/pgolf run recipes/demo.py

test: $(READY)
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/project

bench: $(READY)
	$(BIN)/python benchmarks/step_time.py --out benchmarks/out

golden: $(READY)
	$(BIN)/python -m pytest -q tests/golden

upstream: $(READY)
	$(BIN)/python -m pip install --quiet parameterized
	$(BIN)/python tests/upstream/run_suite.py

clean:
	rm -rf $(VENV) runs corpora
