# What CI runs, and what you run before you push: make test

PYTHON ?= python3
# More arguments for pytest: make test ARGS="tests/unit -k retry"
ARGS ?=
# make test RETRY=--retry runs what failed once more
RETRY ?=
# Most tests wait for a broker most of the time, so there are more of them than cores.
WORKERS ?= 4
# The versions of Python that make test-pythons looks for
PYTHONS ?= 3.11 3.12 3.13 3.14
# How long make soak runs
SOAK_SECONDS ?= 600

BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: help test unit coverage lint types test-rabbitmq test-cluster test-oldest test-pythons demo soak install rabbitmq redis clean

help:
	@echo "make test    everything CI runs: style, types and all tests, against a real RabbitMQ"
	@echo "make unit    unit tests only, in parallel, without RabbitMQ; less than a minute"
	@echo "make coverage       all tests, and which lines and branches they reach; ARGS=tests/unit for some"
	@echo "make test-rabbitmq  tests against RabbitMQ 3.10, 4.0 and 4.3, where they differ"
	@echo "make test-cluster   tests against clusters of three nodes, of RabbitMQ 4.3 and 3.10"
	@echo "make test-oldest    unit tests with the lowest versions of dependencies that setup.cfg admits"
	@echo "make test-pythons   all tests on Python $(PYTHONS), where found"
	@echo "make lint    style only"
	@echo "make types   types only"
	@echo "make demo    run the template on an in-process broker; Ctrl-C ends it"
	@echo "make soak    ten minutes of failures against a real RabbitMQ; SOAK_SECONDS=... for others"
	@echo "make clean   remove the virtual environment and caches"
	@echo
	@echo "PYTHON=$(PYTHON) chooses the interpreter (3.11 or newer) of a new .venv;"
	@echo "ARGS=... is handed to pytest, WORKERS=$(WORKERS) processes run the tests."

test: lint types rabbitmq redis
	@$(BIN)/python -m tests.suites $(RETRY) --workers $(WORKERS) -- $(ARGS)

unit: $(INSTALLED)
	@$(BIN)/pytest --quiet --numprocesses auto --dist worksteal tests/unit $(ARGS)

# The figure is printed whether or not a test failed. Without ARGS, tests need RabbitMQ.
coverage: $(if $(ARGS),$(INSTALLED),rabbitmq redis)
	@$(BIN)/coverage erase
	@$(BIN)/coverage run -m pytest --quiet --numprocesses $(WORKERS) --dist loadfile $(ARGS); \
		code=$$?; $(BIN)/coverage combine --quiet && $(BIN)/coverage html --quiet \
		&& $(BIN)/coverage report && echo "Line by line: htmlcov/index.html" && exit $$code

lint: $(INSTALLED)
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --check --quiet .

# The template is a project of its own, which imports itself by its own name: checked from inside.
types: $(INSTALLED)
	$(BIN)/mypy --strict
	@if [ -d app_template ]; then echo "mypy in app_template" && cd app_template \
		&& MYPYPATH=..:../.ci/stubs ../$(BIN)/mypy --config-file ../pyproject.toml --strict .; fi

# What differs between versions of RabbitMQ: how the broker behaves, and what then becomes of messages.
test-rabbitmq: $(INSTALLED)
	@for version in 3.10 4.0 4.3; do echo "RabbitMQ $$version" && TEST_RABBITMQ=$$version \
		$(BIN)/pytest --quiet --numprocesses $(WORKERS) --dist loadfile \
		tests/contract tests/faults $(ARGS) || exit 1; done

# Three nodes on loopback that fail one after another.
test-cluster: $(INSTALLED)
	@for version in 4.3 3.10; do echo "RabbitMQ $$version" && TEST_RABBITMQ=$$version \
		$(BIN)/pytest --quiet tests/cluster $(ARGS) || exit 1; done

# On the oldest Python, as some of the lowest versions have no wheels for the newer ones.
test-oldest: .venv-oldest/.installed
	.venv-oldest/bin/pytest --quiet --numprocesses $(WORKERS) --dist loadfile \
		-o cache_dir=.venv-oldest/.cache $(or $(ARGS),tests/unit)
	cd app_template && ../.venv-oldest/bin/pytest --quiet -o cache_dir=../.venv-oldest/.cache

.venv-oldest/.installed: setup.cfg .ci/oldest
	rm -rf .venv-oldest
	python3.11 -m venv .venv-oldest
	python3.11 .ci/oldest >.venv-oldest/constraints.txt
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check --retries 10 \
		--constraint .venv-oldest/constraints.txt -e '.[dev,compression,msgspec,uvloop]'
	.venv-oldest/bin/python -m pip check --disable-pip-version-check
	@touch $@

# pyenv runs a version only where it is chosen, so all that it has are.
test-pythons: export PYENV_VERSION := $(shell pyenv versions --bare 2>/dev/null | paste -sd: -)
# One after another: a failure on one of them does not keep the others from running.
test-pythons: rabbitmq redis
	@failed=; for version in $(PYTHONS); do \
		if ! python$$version -c '' 2>/dev/null; then \
			echo "Python $$version: not found"; continue; fi; \
		echo "Python $$version: $$(python$$version --version)"; \
		$(MAKE) --no-print-directory .venv-$$version/.installed \
			&& .venv-$$version/bin/pytest --quiet --numprocesses $(WORKERS) --dist loadfile \
				-o cache_dir=.venv-$$version/.cache $(ARGS) \
			|| failed="$$failed $$version"; \
	done; [ -z "$$failed" ] || { echo "failed on Python$$failed" >&2; exit 1; }

.venv-3.%/.installed: setup.cfg setup.py
	[ -x .venv-3.$*/bin/python ] || python3.$* -m venv .venv-3.$*
	.venv-3.$*/bin/python -m pip install --quiet --disable-pip-version-check --retries 10 \
		-e '.[dev,msgspec,uvloop]'
	@touch $@

demo: $(INSTALLED)
	@$(BIN)/python tests/demo.py

soak: rabbitmq
	@SOAK_SECONDS=$(SOAK_SECONDS) $(BIN)/python -m tests.soak

install: $(INSTALLED)

rabbitmq: $(INSTALLED)
	@.ci/need rabbitmq-server $(BIN)/python -c \
		'import sys; from tests.rabbit import missing; sys.exit(missing())'

redis: $(INSTALLED)
	@.ci/need redis-server $(BIN)/python -c \
		'import sys; from tests.redis_server import missing; sys.exit(missing())'

$(INSTALLED): setup.cfg setup.py | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --retries 10 \
		-e '.[dev,msgspec,uvloop]'
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "$(PYTHON) is not Python 3.11 or newer; choose one: make PYTHON=python3.12 ..." >&2; \
		exit 1; }
	@.ci/need python3-venv $(PYTHON) -c 'import ensurepip'
	$(PYTHON) -m venv .venv

clean:
	rm -rf .venv .venv-* .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist *.egg-info \
		htmlcov .coverage .coverage.*
