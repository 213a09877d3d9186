# `make` alone says what there is.
.DEFAULT_GOAL := help
.PHONY: help run test check docs reference pictures soak fuzz bench lock canary clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BENCH := .venv-bench
DATASET ?= digits
# Asked for on the command line: make run DATASET=mnist SOURCE=~/archives PROFILE=fast
RUN_OPTIONS := $(if $(SOURCE),--source $(SOURCE)) $(if $(PROFILE),--profile $(PROFILE)) $(if $(STORE),--store $(STORE))

help: ## Show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 10

run: $(READY) ## Set up what is missing and run the main job (DATASET=digits, SOURCE=, PROFILE=, STORE=)
	@$(BIN)/idxflow run $(DATASET) $(RUN_OPTIONS)

test: $(READY) ## Set up what is missing and run all tests (ARGS="-k decode")
	@$(BIN)/pytest --numprocesses auto $(ARGS)

check: $(READY) ## Lint, types and import rules
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

docs: $(READY) ## Build the pages of docs/ into site/, offline; a link that leads nowhere is an error
	@$(BIN)/sphinx-build --quiet --fresh-env --fail-on-warning --keep-going --jobs auto -c docs . site
	@echo "site/index.html"

reference: $(READY) ## Write what is generated from the code: pages of docs/reference/, the schema of manifests
	@$(BIN)/python docs/write_reference.py
	@$(BIN)/python -m storage.datasets.json_schema

pictures: $(READY) ## Take the pictures of docs/pictures/ of a real run (needs chromium)
	@$(BIN)/python docs/take_pictures.py

soak: $(READY) ## Retrain again and again with a random fault each, then kill at random (ARGS="--runs 200 --seed 1", KILLS=500)
	@$(BIN)/python -m benchmarks.soak $(or $(ARGS),--runs 200 --seed 1)
	@IDXFLOW_KILLS=$(or $(KILLS),500) $(BIN)/pytest -q -rP --timeout 7200 tests/faults/test_kills.py -k random

fuzz: $(READY) ## Feed the IDX reader what nobody would write (RUNS=10000000)
	@$(BIN)/python -m tests.fuzz idx $(or $(RUNS),10000000)

bench: $(BENCH)/.ready ## Compare speed with other libraries, half an hour or more (MNIST=folder, ARGS="--only training --quick", TORCH=torch==2.13.0)
	@$(if $(TORCH),$(BENCH)/bin/pip install --quiet --disable-pip-version-check "$(TORCH)")
	@$(if $(MNIST),IDXFLOW_MNIST_DIR="$(MNIST)") $(BENCH)/bin/python -m benchmarks $(ARGS)

lock: ## Resolve the dependencies anew into the lock files (needs uv)
	uv pip compile pyproject.toml --group dev --group docs --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --custom-compile-command "make lock" --upgrade --quiet --output-file requirements.lock
	@# What both have is at the same version in both.
	uv pip compile pyproject.toml --group bench --constraint requirements.lock --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --custom-compile-command "make lock" --upgrade --quiet --output-file requirements-bench.lock
	uv pip compile --group export --constraint requirements.lock --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --custom-compile-command "make lock" --upgrade --quiet --output-file requirements-export.lock
	echo pip | uv pip compile - --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --custom-compile-command "make lock" --upgrade --quiet --output-file requirements-pip.lock

canary: ## Weekly job: install the newest allowed releases without the lock, then run the tests
	$(PYTHON) -m venv --clear .venv-canary
	.venv-canary/bin/pip install --quiet "pip>=25.1"
	.venv-canary/bin/pip install --quiet --editable . --group dev --group docs
	.venv-canary/bin/pytest --numprocesses auto $(ARGS)

clean: ## Remove the environment and all caches, but not the store
	rm -rf $(VENV) $(BENCH) .venv-canary *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache site
	find . -name __pycache__ -prune -exec rm -rf {} +

# The stamp is touched last, so an interrupted set-up is done again.
$(READY): requirements.lock requirements-pip.lock pyproject.toml
	$(call set_up,$(VENV),requirements.lock)

$(BENCH)/.ready: requirements-bench.lock requirements-pip.lock pyproject.toml
	$(call set_up,$(BENCH),requirements-bench.lock)

# A pip of its own first: the one that comes with Python 3.11 takes much longer to unpack TensorFlow.
# --no-deps: the lock is complete.
define set_up
@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	{ echo "idxflow needs Python 3.11, 3.12 or 3.13; $(PYTHON) is $$($(PYTHON) -V). Choose another: make PYTHON=python3.12" >&2; exit 1; }
@echo "Setting up $(1), once; this takes a few minutes"
@echo "1 of 5: a new environment of $$($(PYTHON) -V)"
@$(PYTHON) -m venv --clear $(1) || \
	{ echo "The venv module does not work; on Debian: apt-get install python3-venv" >&2; exit 1; }
@echo "2 of 5: the pip that installs the rest"
@$(1)/bin/pip install --quiet --disable-pip-version-check --no-deps --require-hashes --requirement requirements-pip.lock
@echo "3 of 5: $$(grep -c '^[a-z].*==' $(2)) packages of $(2), TensorFlow the largest"
@# TensorFlow on its own, at the same time: to unpack it takes as long as all the others, and pip takes one processor.
@awk -v folder=$(1) 'BEGIN { part = folder "/others.lock" } \
	/^[a-z]/ { part = folder (/^tensorflow==/ ? "/tensorflow.lock" : "/others.lock") } { print >part }' $(2)
@# On a terminal with a line that moves, in which pip's hundreds become one.
@set -- xargs -P 2 -n 1 $(1)/bin/pip install --disable-pip-version-check --no-deps --no-compile --require-hashes; \
	parts() { printf '%s\n' --requirement=$(1)/tensorflow.lock --requirement=$(1)/others.lock; }; \
	if ! test -t 1; then parts | "$$@" --quiet; exit; fi; \
	{ parts | "$$@" && touch $(1)/.installed; } | while read -r what package rest; do case $$what in \
		Collecting) number=$$((number + 1)); printf '\r  %d fetched, now %s\033[K' $$number "$$package";; \
		Installing) printf '\r  unpacking them\033[K';; \
	esac; done; printf '\r\033[K'; test -e $(1)/.installed
@echo "4 of 5: compiling them"
@# On all processors, where pip takes one. What is for other Pythons does not compile, and nobody imports it; the large
@# packages that others bring, and that nothing here imports, are compiled when something does.
@$(1)/bin/python -m compileall -qq -j 0 $(1)/lib \
	-x '/(tests|apprise|cfnlint|dateparser|fontTools|kubernetes_asyncio|ministack/services|moto|mpmath|mypyc?|networkx|sympy)/' || true
@$(1)/bin/pip check --quiet --disable-pip-version-check
@echo "5 of 5: idxflow itself"
@# Without the advice of setuptools on editable installs.
@PYTHONWARNINGS=ignore $(1)/bin/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
@touch $(1)/.ready
endef
