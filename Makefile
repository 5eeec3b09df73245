# Targets for people and for CI. `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv
ENVS := .venvs
# As many processes as there are cores; the real servers have ports of their own, and are tried one by one.
PYTEST := -m pytest -q --numprocesses auto --dist worksteal -m "not servers" --ignore tests/servers
# Covered by `test-servers`, but for what only a race reaches; all else by `test-all`, in full.
NEED_SERVERS := otel_step_hook/temporal/*,otel_step_hook/cli/worker.py
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# pyenv hides all versions but one; this makes each of them a python3.x on the path.
ifneq ($(shell command -v pyenv),)
export PYENV_VERSION := $(shell pyenv versions --bare | grep -E '^3\.1[1-9]\.[0-9]+$$' | paste -sd:)
endif

.PHONY: help demo test test-all lint docs test-pythons test-live accuracy test-lowest test-wheel servers jaeger temporal test-servers screenshots torture soak bench bench-temporal format clean environment
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

environment: $(VENV)/ready ## what the targets need, in .venv

# The stamp is newer than pyproject.toml when the environment is up to date.
$(VENV)/ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; name one with: make PYTHON=python3.12 ...")'
	@echo "setting up $(VENV) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet uv
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --editable '.[cli,otlp,testing,fast,temporal]' --group dev
	@touch $@

demo: $(VENV)/ready ## an agent whose steps succeed, fail and are cancelled; the webhooks and the trace
	@$(BIN)/python -m otel_step_hook demo

test: $(VENV)/ready ## the tests to run after a change: about a minute on two cores
	@$(BIN)/python -m pytest -q --numprocesses auto --dist worksteal -m "not servers and not slow"

test-all: $(VENV)/ready ## all tests but those of the real servers, with full branch coverage of all else
	@$(BIN)/python -m coverage erase
	@$(BIN)/python -m coverage run $(PYTEST) --hypothesis-profile thorough
	@$(BIN)/python -m coverage combine --quiet
	@$(BIN)/python -m coverage report --omit '$(NEED_SERVERS)'

lint: $(VENV)/ready ## ruff, mypy, import-linter
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports

docs: $(ENVS)/docs/ready ## the site of docs/, in docs/_build; warnings are errors
	@$(ENVS)/docs/bin/sphinx-build --quiet --fresh-env --fail-on-warning --keep-going --nitpicky docs docs/_build

$(ENVS)/docs/ready: pyproject.toml $(VENV)/ready
	@$(MAKE_ENV) $(BIN)/python $(ENVS)/docs
	@$(UV) pip install --quiet --python $(ENVS)/docs/bin/python --editable '.[testing,temporal]' --group docs
	@touch $@

# The other Pythons from 3.11 to 3.13 that are here; without any, everything runs on the one of $(VENV).
# $(shell) sees no exported variables before make 4.4.
OTHERS = $(shell export PYENV_VERSION='$(PYENV_VERSION)'; for version in 3.11 3.12 3.13; do \
  if $(BIN)/python -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] == '$$version')" \
  && $(UV) python find --quiet --no-python-downloads $$version >/dev/null 2>&1; then echo $$version; fi; done)
LOWEST_PYTHON = $(firstword $(OTHERS) $(BIN)/python)
WHEEL_PYTHON = $(lastword $(BIN)/python $(OTHERS))
MAKE_ENV = $(UV) venv --quiet --clear --no-python-downloads --python

test-pythons: $(VENV)/ready ## the tests on the Pythons that test-lowest and test-wheel leave out
	@for version in $(filter-out $(LOWEST_PYTHON) $(WHEEL_PYTHON),$(OTHERS)); do \
	  echo "Python $$version:" && \
	  $(MAKE_ENV) $$version $(ENVS)/$$version && \
	  $(UV) pip install --quiet --python $(ENVS)/$$version/bin/python --editable '.[cli,otlp,testing,fast,temporal]' --group test --group frameworks && \
	  $(ENVS)/$$version/bin/python $(PYTEST) --ignore-glob 'tests/*/test_documentation*' || exit 1; \
	done

test-live: $(VENV)/ready servers ## the rules for steps against the newest releases of the frameworks, which run here
	@$(MAKE_ENV) $(BIN)/python $(ENVS)/live
	@$(UV) pip install --quiet --python $(ENVS)/live/bin/python --upgrade --editable '.[cli,otlp,testing,fast,temporal]' --group test --group frameworks --group live
	@$(ENVS)/live/bin/python -m pytest -q tests/live

accuracy: $(VENV)/ready ## how often recorded steps are reported right, and how often their status alone would be
	@$(BIN)/python tests/accuracy.py

test-lowest: $(VENV)/ready ## the tests with the oldest versions that pyproject.toml allows, on the oldest other Python
	@$(MAKE_ENV) $(LOWEST_PYTHON) $(ENVS)/lowest
	@$(UV) pip install --quiet --python $(ENVS)/lowest/bin/python --resolution lowest-direct --editable '.[cli,otlp,testing,fast,temporal]' --group test
	@# the frameworks ask for newer versions than these
	@$(ENVS)/lowest/bin/python $(PYTEST) --ignore-glob 'tests/*/test_frameworks*' --ignore-glob 'tests/*/test_documentation*'

test-wheel: $(VENV)/ready ## the tests against the built wheel, without the source, over httpx, on the newest other Python
	@rm -rf dist
	@$(UV) build --quiet --wheel --out-dir dist
	@$(MAKE_ENV) $(WHEEL_PYTHON) $(ENVS)/wheel
	@$(UV) pip install --quiet --python $(ENVS)/wheel/bin/python "$$(ls dist/*.whl)[cli,otlp,testing,fast,temporal]" --group test --group frameworks
	@mkdir $(ENVS)/wheel/elsewhere && cp -r tests examples pyproject.toml $(ENVS)/wheel/elsewhere/
	@# README and the benchmarks are not in a wheel
	@cd $(ENVS)/wheel/elsewhere && HTTP_CLIENT=httpx ../bin/python $(PYTEST) --ignore-glob 'tests/*/test_documentation*'

format: $(VENV)/ready ## let ruff format and mend what it can
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

torture: $(VENV)/ready ## kill processes that use an outbox, 200 times in each of four ways; no step may be lost
	@$(BIN)/python tests/programs/torture.py

SECONDS ?= 600
soak: $(VENV)/ready ## an outbox for ten minutes, or SECONDS=180, with outages and forks; nothing may grow
	@$(BIN)/python tests/programs/soak.py --seconds $(SECONDS)

servers: ## build the real Jaeger, Collector and Temporal into a cache; half an hour the first time
	@$(PYTHON) tests/servers/build.py

jaeger: ## of the servers only Jaeger
	@$(PYTHON) tests/servers/build.py jaeger

temporal: ## of the servers only Temporal's: 1.32 with its web page, and the command line, which has 1.29
	@$(PYTHON) tests/servers/build.py temporal-server temporal-ui temporal-cli

screenshots: $(VENV)/ready temporal ## the pictures of Temporal's web page in docs/; needs Chromium
	@$(BIN)/python tests/servers/screenshots.py docs/_static

test-servers: $(VENV)/ready servers ## the tests against the real servers, with the branch coverage of what needs one
	@$(BIN)/python -m coverage erase
	@$(BIN)/python -m coverage run -m pytest -q tests/servers tests/unit/temporal tests/programs/test_documentation_servers.py tests/programs/test_documentation_temporal.py
	@$(BIN)/python -m coverage combine --quiet
	@$(BIN)/python -m coverage report --include '$(NEED_SERVERS)' --fail-under 97

bench: $(VENV)/ready ## what the processor costs, and what it delivers, beside the usual ways; half an hour, or PARTS="ends growth"
	@$(BIN)/python benchmarks/bench.py $(PARTS)

bench-temporal: $(VENV)/ready temporal ## what a delivery through Temporal costs, as an activity and as a workflow
	@PYTHONPATH=tests $(BIN)/python benchmarks/temporal.py

clean: ## remove what the other targets made here
	@rm -rf $(VENV) .venvs dist docs/_build .coverage* .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
