# Two commands do everything on a machine with Python >= 3.11:
#
#   make demo   the main job: real climate data, their versions, and a picture of each
#   make test   every check: lint, types, layers, and the tests on every Python that is here
#
# Each makes the virtual environments it needs beside this file (.venv*). `make quick` is for the
# time between two edits, `make clean` removes what was made.

SHELL := /bin/sh
.DELETE_ON_ERROR:
.PHONY: demo test quick check lint test-default test-newest test-middle test-oldest test-zarr2 test-tools docs clean help gpu-check

# find_python(VERSION): the first interpreter of that version that runs. A shim of pyenv that is
# not switched on does not, so each candidate is tried.
find_python = $(shell for p in python$(1) "$$HOME"/.pyenv/versions/$(1).*/bin/python /usr/local/bin/python$(1) /opt/homebrew/bin/python$(1); do \
	"$$p" -c 'import sys, venv, ensurepip; sys.exit("%d.%d" % sys.version_info[:2] != "$(1)")' >/dev/null 2>&1 && echo "$$p" && break; done)

# The default Python is `python3`, or the first one found where that is older than 3.11.
PYTHON ?= $(shell for p in python3 $(call find_python,3.13) $(call find_python,3.12) $(call find_python,3.11); do \
	"$$p" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo "$$p" && break; done)
PYTHON311 := $(call find_python,3.11)
PYTHON312 := $(call find_python,3.12)
PYTHON313 := $(call find_python,3.13)

WORKERS ?= 2
PYTEST = -m pytest -n $(WORKERS) --timeout 600
PIP = -m pip install --quiet --disable-pip-version-check
# What asks other people's servers is run on the default Python alone.
SERVERS = tests/ipfs tests/objects
INTEROP = $(wildcard tests/interop/requirements.txt)

# new_venv(FOLDER, PYTHON): an empty environment with a current pip.
define new_venv
	@test -n "$(2)" || { echo "error: no Python >= 3.11 was found; install one, or name it: make PYTHON=/path/to/python" >&2; exit 1; }
	rm -rf $(1)
	$(2) -m venv $(1)
	$(1)/bin/python $(PIP) --upgrade pip
endef

help:
	@sed -n '1,/^$$/s/^#[ ]*//p' Makefile

# -- the main job ---------------------------------------------------------------------------

demo: .venv/demo
	.venv/bin/python examples/climate.py --output demo-output
	.venv/bin/python examples/versions.py --output demo-output

# -- every check ----------------------------------------------------------------------------

test: lint test-default test-newest test-middle test-oldest test-zarr2
	@echo "all checks passed"

check: lint test-default

quick: .venv/test
	.venv/bin/python $(PYTEST) -m "not slow"

lint: .venv/test
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy cas_zarr
	.venv/bin/lint-imports --no-logo

# Kubo, versitygw, Node.js, packages of npm and, in CI, Chromium, brought once: the builds of the first
# two take some minutes.
test-tools: .venv/test
	.venv/bin/python tests/ipfs/programs.py

test-default: .venv/test test-tools
	.venv/bin/python $(PYTEST)

# A Python that is not installed is said to be missing, and its tests do not run.
ifeq ($(PYTHON313),)
test-newest:
	@echo "skipped: Python 3.13 was not found"
else
test-newest: .venv-3.13/test
	.venv-3.13/bin/python $(PYTEST) -m "not slow" $(SERVERS:%=--ignore %)
	.venv-3.13/bin/python $(PYTEST) -m slow tests/interop tests/blocks tests/codecs tests/tree
endif

ifeq ($(PYTHON312),)
test-middle:
	@echo "skipped: Python 3.12 was not found"
else
test-middle: .venv-3.12/test
	.venv-3.12/bin/python $(PYTEST) -m "not slow" $(SERVERS:%=--ignore %) --ignore tests/interop/test_xarray.py
endif

# The lower bounds that pyproject.toml states, and the first zarr that the store supports; of other
# people's suites only zarr's own, the rest asks for newer packages.
ifeq ($(PYTHON311),)
test-oldest test-zarr2:
	@echo "skipped: Python 3.11 was not found"
else
test-oldest: .venv-oldest/test
	.venv-oldest/bin/python $(PYTEST) -m "not slow" $(SERVERS:%=--ignore %) --ignore-glob 'tests/interop/test_[!z]*.py'

test-zarr2: .venv-zarr2/test
	.venv-zarr2/bin/python -m pytest tests/interop/test_zarr2.py $(wildcard tests/test_mapping.py)
endif

# -- environments ---------------------------------------------------------------------------
# A stamp file in an environment says what was installed into it.

.venv/base: Makefile
	$(call new_venv,.venv,$(PYTHON))
	touch $@

.venv/demo: pyproject.toml .venv/base
	.venv/bin/python $(PIP) --editable '.[demo]'
	touch $@

.venv/test: pyproject.toml $(INTEROP) .venv/base
	.venv/bin/python $(PIP) --editable '.[demo,lint,test]' $(INTEROP:%=-r %)
	touch $@

.venv-3.12/test: pyproject.toml $(INTEROP) Makefile
	$(call new_venv,.venv-3.12,$(PYTHON312))
	.venv-3.12/bin/python $(PIP) --editable '.[demo,test]' $(INTEROP:%=-r %)
	touch $@

.venv-3.13/test: pyproject.toml $(INTEROP) Makefile
	$(call new_venv,.venv-3.13,$(PYTHON313))
	.venv-3.13/bin/python $(PIP) --editable '.[demo,test]' $(INTEROP:%=-r %)
	touch $@

.venv-oldest/test: pyproject.toml Makefile
	$(call new_venv,.venv-oldest,$(PYTHON311))
	.venv-oldest/bin/python -c "$$LOWER_BOUNDS" > .venv-oldest/oldest.txt
	.venv-oldest/bin/python $(PIP) --editable '.[test]' -c .venv-oldest/oldest.txt
	touch $@

.venv-zarr2/test: pyproject.toml Makefile
	$(call new_venv,.venv-zarr2,$(PYTHON311))
	.venv-zarr2/bin/python $(PIP) --editable . 'zarr==2.18.7' pytest pytest-asyncio hypothesis
	touch $@

define LOWER_BOUNDS
import re, tomllib
project = tomllib.load(open("pyproject.toml", "rb"))["project"]
optional = project["optional-dependencies"]
extras = ("cli", "gateway", "ipfs", "plot", "s3", "sign")
for line in sum((optional[name] for name in extras), project["dependencies"]):
    name, bound = re.match(r"([\w-]+)(?:\[\w+\])?>=([\w.]+)", line).groups()
    print(f"{name}=={'3.1.0' if name == 'zarr' else bound}")
endef
export LOWER_BOUNDS

# Everything that needs a GPU: on a machine with one, and with CUDA as the extra says (GPU=gpu-cu13).
GPU ?= gpu-cu12
GPU_REPORT = benchmarks/results/gpu-check.txt

gpu-check: .venv/test
	.venv/bin/python $(PIP) --editable '.[$(GPU)]'
	mkdir -p $(dir $(GPU_REPORT))
	.venv/bin/python -c 'from cas_zarr import gpu; gpu.require()'
	set -e; { .venv/bin/python -m pytest -m gpu -rA --timeout 600 tests/gpu; echo "tests: exit status $$?"; \
	  .venv/bin/python -m benchmarks.gpu; } 2>&1 | tee $(GPU_REPORT)

docs: .venv/test
	.venv/bin/python -m cas_zarr.cli.reference > docs/cli.md

clean:
	rm -rf .venv .venv-3.12 .venv-3.13 .venv-oldest .venv-zarr2 demo-output
	rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
