# What CI runs, and what you run before you push: make test

PYTHON ?= python3
# More arguments for pytest: make test ARGS="tests/unit -k retry"
ARGS ?=
# make test RETRY=--retry runs what failed once more
RETRY ?=
# Most tests wait for a broker most of the time, so there are more of them than cores.
WORKERS ?= 3
# How long make soak runs
SOAK_SECONDS ?= 600

BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: help test lint types test-rabbitmq test-cluster demo soak install rabbitmq clean

help:
	@echo "make test    everything CI runs: style, types and all tests, against a real RabbitMQ"
	@echo "make test-rabbitmq  tests against RabbitMQ 3.10, 4.0 and 4.3, where they differ"
	@echo "make test-cluster   tests against clusters of three nodes, of RabbitMQ 4.3 and 3.10"
	@echo "make lint    style only"
	@echo "make types   types only"
	@echo "make demo    run the template on an in-process broker; Ctrl-C ends it"
	@echo "make soak    ten minutes of failures against a real RabbitMQ; SOAK_SECONDS=... for others"
	@echo "make clean   remove the virtual environment and caches"
	@echo
	@echo "PYTHON=$(PYTHON) chooses the interpreter (3.11 or newer) of a new .venv;"
	@echo "ARGS=... is handed to pytest, WORKERS=$(WORKERS) processes run the tests."

test: lint types rabbitmq
	@$(BIN)/python -m tests.suites $(RETRY) --workers $(WORKERS) -- $(ARGS)

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

demo: $(INSTALLED)
	@$(BIN)/python tests/demo.py

soak: rabbitmq
	@SOAK_SECONDS=$(SOAK_SECONDS) $(BIN)/python -m tests.soak

install: $(INSTALLED)

rabbitmq: $(INSTALLED)
	@.ci/need rabbitmq-server $(BIN)/python -c \
		'import sys; from tests.rabbit import missing; sys.exit(missing())'

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
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis build *.egg-info
