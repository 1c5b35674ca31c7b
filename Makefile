# Two commands do everything on a fresh machine: `make run` and `make test`.
PYTHON ?= python3
BIN := .venv/bin

TORTURE_SECONDS ?= 120
TORTURE_CYCLES ?= 1000000

.PHONY: run test torture lint format lock clean

run: .venv/.done ## set up, and run the sidecar on the default state directory, or a live demo
	@if [ -n "$$REAPER_STATE_DIR" ] || \
	  $(BIN)/python -c 'import os; from reaper.settings import state_dirs; state_dirs([], os.environ)' 2>/dev/null; \
	then exec $(BIN)/reaper watch; \
	else echo "no OpenClaw state directory here: a live demo instead"; exec $(BIN)/reaper demo; fi

test: .venv/.done ## set up, and pass all tests
	$(BIN)/python -m pytest

torture: .venv/.done ## what takes long (half an hour and more): races, crashes, faults, a million cycles, fuzz
	rm -f torture.figures
	TORTURE_FIGURES=torture.figures TORTURE_CYCLES=$(TORTURE_CYCLES) $(BIN)/python -m pytest -m torture
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "atheris>=3,<4"
	for target in reads sweeps; do \
	  $(BIN)/python -m tests.torture.guided $$target $(TORTURE_SECONDS) >torture.fuzz 2>&1 \
	    || { cat torture.fuzz; exit 1; }; \
	  echo "fuzz of $$target:" $$(grep ^Done torture.fuzz) >>torture.figures; \
	done
	@cat torture.figures

lint: .venv/.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/.done
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The dependencies of development, as locked; and this project, editable.
.venv/.done: requirements-dev.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

lock: .venv/.done ## renew requirements-dev.txt from pyproject.toml (needs uv)
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --group dev pyproject.toml -o requirements-dev.txt

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis dist
