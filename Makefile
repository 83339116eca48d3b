PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKERS ?= 2

.PHONY: bench test trust format clean

bench: $(STAMP)
	$(BIN)/python -m pytest benchmarks/ --benchmark-only

test: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -n $(WORKERS)

trust: $(STAMP)
	OMP_NUM_THREADS=1 PYTHONPATH=tests:. $(BIN)/python -m trust --workers $(WORKERS)

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(STAMP): setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt "torch==$$(sed -n 's/^torch==//p' constraints.txt)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,speech]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info benchmarks/out
