# Two commands set up what they need and run: `make demo` and `make test`.
# Everything lives in .venv of this directory; remove it with `make clean`.

SHELL := /bin/bash
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.complete
PYTEST_ARGS ?=
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help demo test oldest check lint format setup system python3.14 constraints clean

help: ## Show this help
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: setup ## Show the leak and the leak gone, on real servers and really dying clients (< 90 s)
	@$(VENV)/bin/leakhunt prove probes/churn.toml --compare \
	    '$(PY) fixtures/leaky_chat.py --port {port}' '$(PY) fixtures/fixed_chat.py --port {port}'

test: setup system python3.14 ## Run the tests
	$(PY) -m pytest $(PYTEST_ARGS)

oldest: system ## Run the contract suite on the oldest releases of the servers (in .venv-oldest)
	@test -x .venv-oldest/bin/python || python3 -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet -r tests/adapters/contract/oldest.txt -e '.[cli]'
	.venv-oldest/bin/python -m pytest tests/adapters/contract $(PYTEST_ARGS)

check: lint test ## Lint, then test

lint: setup ## Check style, types and the layers of the imports
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

format: setup ## Format the code, and fix what can be fixed safely
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

setup: $(STAMP) ## Create .venv with everything that tests and demo need (skipped when up to date)

$(STAMP): pyproject.toml constraints.txt
	@python=$$(for candidate in python3.13 python3.12 python3.11 python3; do \
	    if $$candidate -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
	        2>/dev/null; then command -v $$candidate; break; fi; done); \
	if [ -z "$$python" ]; then \
	    echo "error: no Python >= 3.11 with its venv module was found" \
	         "(looked for python3.13, python3.12, python3.11, python3)" >&2; \
	    echo "hint: on Debian or Ubuntu: apt install python3 python3-venv" >&2; \
	    exit 1; \
	fi; \
	if ! $(PY) -c '' 2>/dev/null; then \
	    echo "setting up $(VENV) with $$("$$python" --version)"; \
	    rm -rf $(VENV) && "$$python" -m venv $(VENV); \
	fi
	@# The dev group is read from pyproject.toml by hand: older pips do not know --group.
	@dev=$$($(PY) -c 'import tomllib; \
	    print(*tomllib.load(open("pyproject.toml", "rb"))["dependency-groups"]["dev"])'); \
	$(PY) -m pip install --quiet --constraint constraints.txt $$dev && \
	$(PY) -m pip install --quiet --constraint constraints.txt --no-build-isolation -e '.[all]'
	@touch $@

# Some tests use `ip`, `openssl`, a Redis, gdb, and node with its module ws; without them they are
# skipped and say why. Debian's node-ws stands in a directory where other builds do not look.
system:
	@missing=$$(command -v ip >/dev/null || echo iproute2; \
	            command -v openssl >/dev/null || echo openssl; \
	            command -v redis-server >/dev/null || echo redis-server; \
	            command -v node >/dev/null || echo nodejs; \
	            command -v gdb >/dev/null || echo gdb; \
	            { python3.14 -c '' || command -v debootstrap; } >/dev/null 2>&1 || echo debootstrap; \
	            NODE_PATH=$$NODE_PATH:/usr/share/nodejs node -e 'require("ws")' 2>/dev/null || \
	                echo node-ws); \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "installing what some tests need:" $$missing; \
	    { apt-get install -qq -y --no-install-recommends $$missing || \
	      { apt-get update -qq && \
	        apt-get install -qq -y --no-install-recommends $$missing; }; } >/dev/null || \
	    echo "that failed: the tests that need it will be skipped"; \
	else \
	    echo "not installed:" $$missing "(the tests that need it will be skipped)"; \
	fi

# A server on Python 3.14 is looked into without an agent. Where there is none, Debian's is put
# into a directory (170 MB, which takes about a minute once); without it that test is skipped.
python3.14: system
	@if python3.14 -c '' 2>/dev/null || [ -d .python3.14 ]; then exit 0; fi; \
	if [ "$$(id -u)" != 0 ] || ! command -v debootstrap >/dev/null; then \
	    echo "no Python 3.14, and none can be made (the tests that need it will be skipped)"; \
	    exit 0; \
	fi; \
	echo "making a Python 3.14 in .python3.14"; \
	rm -rf .python3.14.new; \
	timeout 300 debootstrap --variant=minbase --include=python3.14 testing .python3.14.new \
	    >.python3.14.log 2>&1 && \
	    rm -rf .python3.14.new/var/cache/apt .python3.14.new/var/lib/apt/lists && \
	    mv .python3.14.new .python3.14 || \
	{ tail -n 3 .python3.14.log; rm -rf .python3.14.new; \
	  echo "that failed: the tests that need it will be skipped"; }; \
	rm -f .python3.14.log

constraints: setup ## Write constraints.txt anew from what is installed in .venv
	@{ sed -n '/^#/p' constraints.txt; \
	   $(PY) -m pip freeze --exclude-editable | grep '^[A-Za-z0-9._-]*=='; } > constraints.new
	@mv constraints.new constraints.txt

clean: ## Remove .venv, caches and build results
	rm -rf $(VENV) .venv-oldest .python3.14 build dist out .mypy_cache .ruff_cache .pytest_cache \
	    .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
