# The project's commands; `make` alone lists them.

PYTHON ?= $(shell command -v python3.11 >/dev/null 2>&1 && echo python3.11 || echo python3)
VENV ?= .venv
BIN = $(VENV)/bin
INSTALLED = $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install quickstart test test-benchmarks test-oldest test-newest lint clean

help: ## list the commands
	@grep -E '^[a-z-]+:.* ## ' $(MAKEFILE_LIST) | awk -F ':.* ## ' '{printf "  make %-16s %s\n", $$1, $$2}'

install: $(INSTALLED) ## make .venv with the tested versions of constraints.txt (once)

# torch goes in first and alone: with it in place no other requirement can make pip fetch a newer, larger build.
$(INSTALLED): constraints.txt setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("hf_calib needs Python 3.11 or newer, \
	and $(PYTHON) is %d.%d: say which one to take, as in make PYTHON=python3.11" % v[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --constraint constraints.txt torch
	$(BIN)/python -m pip install --constraint constraints.txt --editable ".[train,app,deepspeed,dev]"
	@touch $@

quickstart: install ## restore an overconfident model on two cores; the report is quickstart-report/report.md
	$(BIN)/hf-calib quickstart --output_dir quickstart-report

# One process runs a file, so that its fixtures are made once. One thread each: tests that start processes are slowed down by more.
THREADS = OMP_NUM_THREADS=1
PYTEST = -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test: install ## run the tests of the package on all cores (at most four)
	$(THREADS) $(BIN)/python $(PYTEST) --ignore tests/benchmarks

test-benchmarks: install ## run the tests of the benchmarks' own code
	$(THREADS) $(BIN)/python $(PYTEST) tests/benchmarks

$(VENV)-oldest/.installed: constraints-oldest.txt setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)-oldest
	$(VENV)-oldest/bin/python -m pip install --constraint constraints-oldest.txt torch
	$(VENV)-oldest/bin/python -m pip install --constraint constraints-oldest.txt --editable ".[dev]"
	@touch $@

test-oldest: $(VENV)-oldest/.installed ## run the tests that need no TRL with the oldest versions
	$(THREADS) $(VENV)-oldest/bin/python $(PYTEST)

$(VENV)-newest/.installed: constraints-newest.txt setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)-newest
	$(VENV)-newest/bin/python -m pip install --constraint constraints-newest.txt torch
	$(VENV)-newest/bin/python -m pip install --constraint constraints-newest.txt --editable ".[train,app,deepspeed,dev]"
	@touch $@

test-newest: $(VENV)-newest/.installed ## run all tests with the newest versions
	$(THREADS) $(VENV)-newest/bin/python $(PYTEST)

lint: install ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean: ## remove what the other commands made
	rm -rf $(VENV) $(VENV)-oldest $(VENV)-newest build dist *.egg-info quickstart-report .pytest_cache .ruff_cache .hypothesis
	find hf_calib metrics recipes tests -name __pycache__ -type d -prune -exec rm -rf {} +
