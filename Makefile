# Needs only a POSIX shell, make and Python 3.11+. Every target prepares .venv by itself.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
ARGS   ?=
NAME   ?=
BROKER ?=
STORE  ?=
GUESTS ?=
TESTS  ?=
EXAMPLES = $(patsubst %/run.py,%,$(wildcard examples/*/run.py))

.PHONY: capabilities help demo example deploy-test services services-down observe test check format bench lock clean dist matrix site supply torture
help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

$(VENV)/.ready: pyproject.toml requirements/build.txt requirements/runtime.txt requirements/shop.txt
	@scripts/prepare "$(PYTHON)" "$(VENV)" build runtime shop
	@touch $@

$(VENV)/.ready-dev: $(VENV)/.ready requirements/dev.txt
	@scripts/prepare "$(PYTHON)" "$(VENV)" dev
	@touch $@

$(VENV)/.ready-bench: $(VENV)/.ready-dev requirements/bench.txt
	@scripts/prepare "$(PYTHON)" "$(VENV)" bench
	@touch $@

$(VENV)/.ready-release: $(VENV)/.ready-dev requirements/release.txt
	@scripts/prepare "$(PYTHON)" "$(VENV)" release
	@touch $@

ifeq ($(BROKER)$(STORE),)
demo: $(VENV)/.ready  ## start the shop; ARGS="--orders 200" places orders and checks the books; BROKER=kafka STORE=postgresql GUESTS=1
	@cd examples/shop && ../../$(BIN)/python demo.py $(ARGS) $(if $(GUESTS),--guests)
else
demo: $(VENV)/.ready-dev
	@$(BIN)/python scripts/demo $(BIN)/python "$(BROKER)" "$(STORE)" $(ARGS) $(if $(GUESTS),--guests)
endif

example: $(if $(BROKER)$(STORE),$(VENV)/.ready-dev,$(VENV)/.ready)  ## start another example; NAME=iot, with ARGS="--events 50000" it ends by itself; BROKER=kafka STORE=postgresql
	@$(BIN)/python scripts/example $(BIN)/python "$(NAME)" "$(BROKER)" "$(STORE)" $(ARGS)

services: $(VENV)/.ready-dev  ## bring up the real brokers and databases that tests run against
	@scripts/system-packages
	@PYTHON="$(PYTHON)" scripts/services up $(ARGS)

services-down:  ## stop them; ARGS=--wipe also deletes their data
	@PYTHON="$(PYTHON)" scripts/services down $(ARGS)

observe: $(VENV)/.ready-dev  ## Prometheus, Jaeger and Grafana on the running shop; ARGS="--project FOLDER" on another
	@scripts/system-packages
	@$(BIN)/python scripts/observe $(ARGS)

deploy-test: $(VENV)/.ready-dev  ## run what `oyez deploy` writes on a real cluster; STRICT=1 fails on a skip
	@scripts/system-packages buildah mmdebstrap
	@STRICT="$(STRICT)" PYTHON=$(BIN)/python scripts/deploy-test $(ARGS)

torture: $(VENV)/.ready-dev  ## the shop under injected faults; ARGS="--part kills --broker nats --store postgresql --kills 100 --seed 7"
	@scripts/system-packages strace gcc libc6-dev
	@STRICT="$(STRICT)" PYTHON=$(BIN)/python scripts/torture $(ARGS)

test: $(VENV)/.ready-dev  ## run every test this machine can run; STRICT=1 fails on a skip
	@STRICT="$(STRICT)" $(BIN)/python -m pytest $(TESTS)

capabilities: $(VENV)/.ready-dev  ## run the conformance suites and write docs/capabilities.md
	@CAPABILITIES=docs/capabilities.md STRICT=1 $(BIN)/python -m pytest tests/conformance

check: $(VENV)/.ready-dev  ## formatter, linter, type checkers, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	@for each in $(EXAMPLES); do \
	  echo "mypy $$each"; MYPYPATH=$$each:scripts/example.d $(BIN)/mypy $$each scripts/example.d || exit; done
	$(BIN)/pyright
	$(BIN)/lint-imports

format: $(VENV)/.ready-dev  ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.ready-bench  ## the benchmarks, as ratios
	@$(BIN)/python -m benchmarks $(ARGS)

dist: $(VENV)/.ready-release  ## the sdist and the wheel, built twice and equal, and tried as installed
	@$(BIN)/python scripts/dist --smoke $(ARGS)

matrix: $(VENV)/.ready-release dist/SHA256SUMS  ## the unit tests on every Python of this machine; ARGS="3.13 lowest"
	@$(BIN)/python scripts/matrix --fetch $(ARGS)

supply: $(VENV)/.ready-release dist/SHA256SUMS  ## SBOM and licences of what each extra installs, and known faults
	@$(BIN)/python scripts/supply $(ARGS)

dist/SHA256SUMS: $(VENV)/.ready-release
	@$(BIN)/python scripts/dist

site: $(VENV)/.ready-dev  ## the docs as pages, links checked
	@$(BIN)/python scripts/site $(ARGS)

lock: $(VENV)/.ready-dev  ## pin the requirements again, with hashes
	@scripts/lock "$(BIN)"

clean:  ## remove the environment and everything the demo wrote
	rm -rf $(VENV) .pythons build dist .demo examples/*/.oyez
