PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKERS ?= 2
NEEDED_BY_TORCH := filelock fsspec jinja2 networkx setuptools sympy typing-extensions

# Threads of tests that run beside one another sleep while they wait, so that the others have the core.
CALM := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive

# Bytecode is kept with the environment, so that not every process of the tests compiles PyTorch's sources anew.
export PYTHONDONTWRITEBYTECODE :=
export PYTHONPYCACHEPREFIX := $(CURDIR)/$(VENV)/bytecode

.PHONY: bench bench-all test trust compat format pins clean

bench: $(STAMP)
	$(BIN)/python -m pytest benchmarks/ --benchmark-only

bench-all: $(STAMP)
	$(BIN)/python -m pytest benchmarks/ --benchmark-only --quick

test: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(CALM) $(BIN)/python -m pytest tests -n $(WORKERS) --dist worksteal --types --evidence

trust: $(STAMP)
	$(CALM) PYTHONPATH=tests:. $(BIN)/python -m trust --workers $(WORKERS)

# Goldens and tests in several versions of PyTorch, each in an environment without the libraries of CUDA.
compat: $(STAMP)
	PYTHONPATH=tests $(BIN)/python -m compat --jobs $(WORKERS)

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Versions and hashes of all that is installed for development, but for torch and what only torch brings along, whose
# files differ by platform.
pins:
	$(PYTHON) -m venv build/pins
	build/pins/bin/python -m pip install --quiet --no-compile uv
	echo torch > build/pins/excluded.txt
	printf '%s\n' $(NEEDED_BY_TORCH) | build/pins/bin/uv pip compile setup.py - --extra dev --extra speech \
		--constraint constraints.txt --excludes build/pins/excluded.txt --universal --python-version 3.11 \
		--generate-hashes --no-annotate --custom-compile-command "make pins" --quiet --output-file requirements.txt

# What torch brings along is installed anew, from files with known hashes.
$(STAMP): setup.py constraints.txt requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile "torch==$$(sed -n 's/^torch==//p' constraints.txt)"
	$(BIN)/python -m pip install --quiet --no-compile --require-hashes --no-deps --only-binary :all: --force-reinstall \
		--requirement requirements.txt
	$(BIN)/python -m pip install --quiet --no-compile --no-deps --no-build-isolation --editable .
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info benchmarks/out
