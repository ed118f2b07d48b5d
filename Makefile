# `make demo` and `make test` need nothing but Python 3.11 or newer: they set up .venv themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-thorough test-all test-newest coverage check types installed notebooks docs docs-test extras clean

demo: $(READY)
	$(BIN)/ppl-fe demo --output demo-output

# One process a core, one thread a process: threads that wait for each other on a busy machine are
# many times slower. Nor do Inductor's helpers, which import torch anew, pay for kernels this small.
PYTEST := OMP_NUM_THREADS=1 TORCHINDUCTOR_COMPILE_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist worksteal

# The tests that one waits for: minutes.
test: $(READY)
	$(PYTEST) --durations=10

# The checks in their other settings and the longest examples, which .ci/run adds: minutes again.
test-thorough: $(READY)
	$(PYTEST) -m "thorough and not slow" --durations=10

# Those and the long statistical runs: hours.
test-all: $(READY)
	$(PYTEST) -m "slow or not slow"

# The fast tests on the newest releases, in an environment of their own: make test-newest
# PYTHON=python3.13. TORCH takes a torch of another index, such as that of the CPU builds, by its options.
NEWEST := .venv-newest
TORCH ?= torch
test-newest:
	rm -rf $(NEWEST)
	$(PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/pip install --quiet --upgrade pip
	$(NEWEST)/bin/pip install --quiet --upgrade $(TORCH)
	$(NEWEST)/bin/pip install --quiet --upgrade "setuptools>=77" -e ".[test]"
	$(NEWEST)/bin/pip list
	$(PYTEST:$(BIN)/%=$(NEWEST)/bin/%)

# Each extra alone in an empty environment, and what it is for used there; "nothing" is none of them.
EXTRAS := nothing plots netcdf demo distributed lora huggingface notebooks docs
extras: $(EXTRAS:%=extra-%)

extra-%: installed
	rm -rf build/extras/$*
	$(PYTHON) -m venv build/extras/$*
	build/extras/$*/bin/pip install --quiet -c constraints.txt torch
	build/extras/$*/bin/pip install --quiet -c constraints.txt ".$(if $(filter-out nothing,$*),[$*])"
	NO_MKDOCS_2_WARNING=1 build/extras/$*/bin/python tests/extras.py $*
	rm -rf build/extras/$*

# Lines and branches of the package that `make test` runs through.
coverage: $(READY)
	$(PYTEST) --cov --cov-report=term-missing:skip-covered

notebooks: $(READY)
	$(BIN)/python notebooks/run.py

# mypy and the site's reference follow the mapped folder models/ on an installed copy only.
installed: $(READY)
	rm -rf build && mkdir -p build
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --target build/installed .

check: types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: installed
	cd build && MYPYPATH=installed ../$(BIN)/mypy --config-file ../pyproject.toml --cache-dir ../.mypy_cache -p ppl_fe
	MYPYPATH=build/installed:benchmarks:notebooks $(BIN)/mypy --cache-dir .mypy_cache/tests tests notebooks

docs: installed $(VENV)/.docs-ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict --config-file docs/mkdocs.yml
	@echo "The site is there: open build/site/index.html"

# Every page of it in a browser, light and dark: links, formulas, errors, the search.
docs-test: docs
	$(BIN)/pip install --quiet -c constraints.txt "playwright>=1.50"
	$(BIN)/python -m pytest -q -rs -m slow tests/test_site.py

$(VENV)/.docs-ready: $(READY)
	$(BIN)/pip install --quiet -c constraints.txt -e ".[docs]"
	touch $@

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	# torch first and alone: a resolver that sees no torch yet may fetch the CUDA build.
	$(BIN)/pip install --quiet -c constraints.txt torch
	$(BIN)/pip install --quiet -c constraints.txt "setuptools>=77" -e ".[test]"
	touch $(READY)

clean:
	rm -rf $(VENV) build dist demo-output .mypy_cache .ruff_cache .pytest_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
