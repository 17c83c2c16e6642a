# Every target sets up what it needs: only Python 3.11 or newer with venv, and make, have to be there.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test check bench run fuzz clean

$(READY): pyproject.toml
	@echo "setting up .venv (once) ..."
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(READY) ## a file through a server, rotating keys and a cut connection
	@$(BIN)/python -m examples.demo

test: $(READY) ## the whole test suite
	@$(BIN)/python -m pytest

check: $(READY) ## what CI runs beside the tests: format, lint, types, layers, coverage, vectors
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m conformance.generate --check
	@$(BIN)/python -m tests.maxi_cov

bench: $(READY) ## ratios to raw aiohttp in clear text
	@$(BIN)/python -m benchmarks

run: $(READY) ## a server on 127.0.0.1:8765
	@$(BIN)/rwt-server serve

fuzz: $(READY) ## 20,000 rotation schedules and their mutations, 1,000,000 mutated frames
	@$(BIN)/python -m tests.rotation_fuzz --schedules 20000 --seed 1
	@$(BIN)/python -m tests.rotation_fuzz --mutations
	@$(BIN)/python -m tests.frame_fuzz --frames 1000000 --seed 1

clean:
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage
