# Everything runs in .venv, which is made on first use. Needs Python >= 3.11, make and a package registry; uv is used
# where it is there. `make help` lists the targets.

VENV   := .venv
PY     := $(VENV)/bin/python
JOBS   ?= 2
PYTEST := $(PY) -m pytest
# One stamp for each set of extras. The larger set stamps both, so that neither target installs twice.
DEMO   := $(VENV)/.installed-demo
FULL   := $(VENV)/.installed-full

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test fast check lint slow bench regen clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-8s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(DEMO)  ## quantize a small trained model and show what came of it
	$(PY) samples/demo.py

test: $(FULL)  ## all tests that need neither minutes nor a GPU, JOBS=2 at a time
	$(PYTEST) -n $(JOBS)

# Without test_linear.py, which measures planning of 10,000 ops and takes as long as the rest of its folder.
fast: $(FULL)  ## the tests of the low floors, JOBS=2 at a time; stops at the first failure
	$(PYTEST) -x -q -n $(JOBS) --ignore=tests/core/test_linear.py $(or $(wildcard tests/base tests/formats tests/data tests/numerics tests/graph tests/core),tests/floors/test_sizes.py)

check: lint test  ## what CI runs

lint: $(FULL)  ## ruff, formatting, types, floors
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports --no-logo

slow: $(FULL)  ## the tests that take minutes or a package registry
	$(PYTEST) -m "slow and not gpu"

bench: $(FULL)  ## every benchmarks/*.py: JSON lines
	@for f in benchmarks/*.py; do if [ -e "$$f" ]; then $(PY) "$$f" --json || exit 1; fi; done

regen: $(FULL)  ## write generated files anew (tests/golden, schemas); read the diff before you commit
	REGEN=1 $(PYTEST) tests/golden

clean:  ## remove .venv, caches and build output
	rm -rf $(VENV) demo dist build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find fp8graph passes tests samples benchmarks -type d -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

$(DEMO): pyproject.toml $(PY)
	@$(call install,rtx)
	@touch $(DEMO)

$(FULL): pyproject.toml $(PY)
	@$(call install,rtx$(comma)test$(comma)dev)
	@touch $(DEMO) $(FULL)

comma := ,
define install
set -e; echo "installing fp8graph[$(1)] into $(VENV) (the first time it fetches some hundred MB)"; \
if command -v uv >/dev/null 2>&1; then \
	if uv pip install --quiet --python $(PY) -e '.[$(1)]'; then exit 0; fi; \
	echo "uv could not install it; trying pip" >&2; \
	$(PY) -m pip --version >/dev/null 2>&1 || $(PY) -m ensurepip >/dev/null; \
fi; \
$(PY) -m pip install --quiet --disable-pip-version-check -e '.[$(1)]'
endef

# The first interpreter that answers as 3.11 or later; PYTHON=... names another one.
$(PY):
	@for p in $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11 python); do \
		if "$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then found="$$p"; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
		echo "error: no Python 3.11 or later found (tried: $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11 python))" >&2; \
		echo "  do:    install one, or name it: make PYTHON=/path/to/python3.12 test" >&2; exit 1; \
	fi; \
	echo "making $(VENV) with $$("$$found" -V)"; \
	"$$found" -m venv --clear $(VENV) || { command -v uv >/dev/null 2>&1 && uv venv --quiet --clear --python "$$found" $(VENV); } || { \
		rm -rf $(VENV); \
		echo "error: $$found could not make a virtual environment" >&2; \
		echo "  do:    install its venv module (Debian, Ubuntu: apt-get install python3-venv), or uv" >&2; exit 1; \
	}
