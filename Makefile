# `make test` runs what CI runs

PYTHON ?= python3
# More arguments for pytest: make test ARGS="tests/unit -k retry"
ARGS ?=
# make test RETRY=--retry runs failed tests once more
RETRY ?=
# More workers than cores, because most tests wait for a broker most of the time.
WORKERS ?= 4
# The versions of Python that make test-pythons looks for
PYTHONS ?= 3.11 3.12 3.13 3.14
# The duration of make soak
SOAK_SECONDS ?= 600

BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: help test unit coverage lint types test-rabbitmq test-cluster test-clients test-oldest \
	test-pythons demo docs soak build licenses install rabbitmq redis postgresql chromium node clean

help:
	@echo "make test    all that CI runs: style, types and all tests, with a real RabbitMQ"
	@echo "make unit    unit tests only, in parallel, without RabbitMQ; less than a minute"
	@echo "make coverage       coverage of lines and branches by all tests; ARGS=tests/unit for some"
	@echo "make test-rabbitmq  contract and fault tests with RabbitMQ 3.10, 4.0 and 4.3"
	@echo "make test-cluster   tests with clusters of three nodes, of RabbitMQ 4.3 and 3.10"
	@echo "make test-clients   other clients on our broker: Celery, FastStream, asyncworker, pika, ..."
	@echo "make test-oldest    unit tests with the lowest versions of dependencies that setup.cfg allows"
	@echo "make test-pythons   all tests on each installed Python of $(PYTHONS)"
	@echo "make lint    style only"
	@echo "make types   types only"
	@echo "make demo    run the template on an in-process broker; Ctrl-C stops it"
	@echo "make docs    the documentation as a site in docs/_build/html"
	@echo "make soak    ten minutes of failures with a real RabbitMQ; SOAK_SECONDS=... sets the time"
	@echo "make build   wheel and sdist, in dist/"
	@echo "make licenses       the licenses of all dependencies"
	@echo "make clean   remove the virtual environment and caches"
	@echo
	@echo "PYTHON=$(PYTHON) chooses the interpreter (3.11 or newer) of a new .venv;"
	@echo "ARGS=... are arguments for pytest; WORKERS=$(WORKERS) processes run the tests."

test: lint types rabbitmq redis postgresql chromium node
	@$(BIN)/python -m tests.suites $(RETRY) --workers $(WORKERS) -- $(ARGS)

unit: $(INSTALLED)
	@$(BIN)/pytest --quiet --numprocesses auto --dist worksteal tests/unit $(ARGS)

# The figures are printed even if a test fails. Without ARGS, the tests need RabbitMQ.
coverage: $(if $(ARGS),$(INSTALLED),rabbitmq redis postgresql chromium node)
	@$(BIN)/coverage erase
	@$(BIN)/coverage run -m pytest --quiet --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS); \
		code=$$?; $(BIN)/coverage combine --quiet && $(BIN)/coverage html --quiet \
		&& $(BIN)/coverage report && echo "Line by line: htmlcov/index.html" && exit $$code

lint: $(INSTALLED)
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --check --quiet .

# The template is a separate project that imports the package `shop`: checked from its directory.
types: $(INSTALLED)
	$(BIN)/mypy --strict
	@if [ -d app_template ]; then echo "mypy in app_template" && cd app_template \
		&& MYPYPATH=..:../.ci/stubs ../$(BIN)/mypy --config-file ../pyproject.toml --strict .; fi

# Tests whose results depend on the version of RabbitMQ.
test-rabbitmq: $(INSTALLED)
	@for version in 3.10 4.0 4.3; do echo "RabbitMQ $$version" && TEST_RABBITMQ=$$version \
		$(BIN)/pytest --quiet --numprocesses $(WORKERS) --dist loadfile \
		tests/contract tests/faults $(ARGS) || exit 1; done

# Three nodes on loopback that fail one after another.
test-cluster: $(INSTALLED)
	@for version in 4.3 3.10; do echo "RabbitMQ $$version" && TEST_RABBITMQ=$$version \
		$(BIN)/pytest --quiet tests/cluster $(ARGS) || exit 1; done

# Other clients on the embedded broker. They are no dependencies: environments of their own.
test-clients: .venv-clients/.installed .venv-asyncworker/.installed rabbitmq
	.venv-clients/bin/pytest --quiet --numprocesses $(WORKERS) --dist loadfile \
		-o cache_dir=.venv-clients/.cache $(or $(ARGS),tests/clients)

.venv-clients/.installed: .ci/clients.txt setup.cfg setup.py
	[ -x .venv-clients/bin/python ] || $(PYTHON) -m venv .venv-clients
	@.venv-clients/bin/python -m pip install --quiet --disable-pip-version-check --retries 5 \
		--requirement .ci/clients.txt -e . || { \
		echo "make test-clients needs the packages of .ci/clients.txt, and pip could not install" \
			"them: PyPI, or the index that pip is configured for, cannot be reached or does not" \
			"have one of them; see above." >&2; exit 1; }
	.venv-clients/bin/python -m pip check --disable-pip-version-check
	@touch $@

# asyncworker needs libraries that have no wheels for newer versions of Python.
.venv-asyncworker/.installed: .ci/asyncworker.txt
	@python3.11 -c '' 2>/dev/null || { \
		echo "make test-clients runs asyncworker, which needs Python 3.11: no python3.11 found" >&2; \
		exit 1; }
	[ -x .venv-asyncworker/bin/python ] || python3.11 -m venv .venv-asyncworker
	.venv-asyncworker/bin/python -m pip install --quiet --disable-pip-version-check --retries 5 \
		--requirement .ci/asyncworker.txt
	@touch $@

# On the oldest Python, because some of the lowest versions have no wheels for newer ones.
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

# pyenv runs only the versions that this variable selects: all.
test-pythons: export PYENV_VERSION := $(shell pyenv versions --bare 2>/dev/null | paste -sd: -)
# One after another; a failure on one does not stop the others.
test-pythons: rabbitmq redis postgresql chromium node
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

docs: $(INSTALLED)
	@$(BIN)/python -m sphinx -W --keep-going --quiet docs docs/_build/html
	@echo "docs/_build/html/index.html"

demo: $(INSTALLED)
	@cd app_template && ../$(BIN)/python demo.py

soak: rabbitmq
	@SOAK_SECONDS=$(SOAK_SECONDS) $(BIN)/python -m tests.soak

# With the time of the last commit, so that everyone who builds it gets the same wheel.
build: export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct)
build: $(INSTALLED)
	rm -rf build dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

licenses: $(INSTALLED)
	@$(BIN)/python -m tests.licenses

install: $(INSTALLED)

rabbitmq: $(INSTALLED)
	@.ci/need rabbitmq-server $(BIN)/python -c \
		'import sys; from tests.rabbit import missing; sys.exit(missing())'

redis: $(INSTALLED)
	@.ci/need redis-server $(BIN)/python -c \
		'import sys; from tests.redis_server import missing; sys.exit(missing())'

postgresql: $(INSTALLED)
	@.ci/need postgresql $(BIN)/python -c \
		'import sys; from tests.postgresql_server import missing; sys.exit(missing())'

chromium:
	@.ci/need chromium which chromium

# The parsers of OpenAPI and AsyncAPI that check our documents are written in JavaScript.
node: .ci/node/node_modules/.installed

.ci/node/node_modules/.installed: .ci/node/package-lock.json
	@.ci/need npm which npm
	@npm ci --ignore-scripts --prefix .ci/node --no-audit --no-fund --loglevel error
	@touch $@

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
		htmlcov .coverage .coverage.* docs/_build
