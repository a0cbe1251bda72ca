# Two commands do everything on a machine with Python >= 3.11:
#
#   make demo   the main job: real climate data, their versions, and a picture of each
#   make test   every check: lint, types, layers, and the tests on every Python that is here
#
# Each makes the virtual environments it needs beside this file (.venv*). `make quick` is for the
# time between two edits, `make clean` removes what was made.

SHELL := /bin/sh
.DELETE_ON_ERROR:
.PHONY: demo test quick check lint test-default test-newest test-middle test-oldest test-zarr2 test-tools docs clean help gpu-check gpu-environment

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
ENVIRONMENTS = .venv/test $(if $(PYTHON313),.venv-3.13/test) $(if $(PYTHON312),.venv-3.12/test) \
	$(if $(PYTHON311),.venv-oldest/test .venv-zarr2/test)

# More than the two cores of CI: many tests wait, for answers, processes and deadlines.
WORKERS ?= 3
PYTEST = -m pytest -n $(WORKERS) --dist worksteal --timeout 600
# uv installs in seconds what takes pip a minute.
UV = .venv/bin/uv
INSTALL = $(UV) pip install --quiet --python
# The default Python proves every promise. The others run what they may change; not other people's
# servers, and not the slow: kill points, flipped bits and machines of states at length.
OTHERS = $(PYTEST) -m "not slow" --ignore tests/ipfs --ignore tests/objects
INTEROP = $(wildcard tests/interop/requirements.txt)

# Without the files of bytecode each of a thousand children would compile all that it imports.
unexport PYTHONDONTWRITEBYTECODE

help:
	@sed -n '1,/^$$/s/^#[ ]*//p' Makefile

# -- the main job ---------------------------------------------------------------------------

demo: .venv/demo
	.venv/bin/python examples/climate.py --output demo-output
	.venv/bin/python examples/versions.py --output demo-output

# -- every check ----------------------------------------------------------------------------

# What waits for servers, for packages and builds, is brought beside what computes.
test:
	$(MAKE) --jobs 3 lint test-tools $(ENVIRONMENTS)
	$(MAKE) test-default test-newest test-middle test-oldest test-zarr2
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
# The newest zarr, and its own machines of states as well.
test-newest: .venv-3.13/test
	.venv-3.13/bin/python $(OTHERS)
	.venv-3.13/bin/python $(PYTEST) -m slow tests/interop/test_zarr_suite.py
endif

ifeq ($(PYTHON312),)
test-middle:
	@echo "skipped: Python 3.12 was not found"
else
# What works on a Python before it and on one after it works here: this looks that all can be
# installed, and that stores and commands run.
test-middle: .venv-3.12/test
	.venv-3.12/bin/python $(OTHERS) tests/interop/test_zarr_suite.py tests/test_store.py tests/cli
endif

# The lower bounds that pyproject.toml states, and the first zarr that the store supports; of other
# people's suites only zarr's own, the rest asks for newer packages.
ifeq ($(PYTHON311),)
test-oldest test-zarr2:
	@echo "skipped: Python 3.11 was not found"
else
test-oldest: .venv-oldest/test
	.venv-oldest/bin/python $(OTHERS) --ignore-glob 'tests/interop/test_[!z]*.py'

test-zarr2: .venv-zarr2/test
	.venv-zarr2/bin/python -m pytest tests/interop/test_zarr2.py $(wildcard tests/test_mapping.py)
endif

# -- environments ---------------------------------------------------------------------------
# A stamp file in an environment says what was installed into it.

.venv/base: Makefile
	@test -n "$(PYTHON)" || { echo "error: no Python >= 3.11 was found; install one, or name it: make PYTHON=/path/to/python" >&2; exit 1; }
	rm -rf .venv
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check uv
	touch $@

.venv/demo: pyproject.toml .venv/base
	$(INSTALL) .venv --editable '.[demo]'
	touch $@

.venv/test: pyproject.toml $(INTEROP) .venv/base
	$(INSTALL) .venv --editable '.[demo,lint,test]' $(INTEROP:%=-r %)
	touch $@

.venv-3.12/test: pyproject.toml $(INTEROP) Makefile | .venv/base
	$(UV) venv --quiet --clear --python $(PYTHON312) .venv-3.12
	$(INSTALL) .venv-3.12 --editable '.[demo,test]' $(INTEROP:%=-r %)
	touch $@

.venv-3.13/test: pyproject.toml $(INTEROP) Makefile | .venv/base
	$(UV) venv --quiet --clear --python $(PYTHON313) .venv-3.13
	$(INSTALL) .venv-3.13 --editable '.[demo,test]' $(INTEROP:%=-r %)
	touch $@

.venv-oldest/test: pyproject.toml Makefile | .venv/base
	$(UV) venv --quiet --clear --python $(PYTHON311) .venv-oldest
	.venv-oldest/bin/python -c "$$LOWER_BOUNDS" > .venv-oldest/oldest.txt
	$(INSTALL) .venv-oldest --editable '.[test]' -c .venv-oldest/oldest.txt
	touch $@

.venv-zarr2/test: pyproject.toml Makefile | .venv/base
	$(UV) venv --quiet --clear --python $(PYTHON311) .venv-zarr2
	$(INSTALL) .venv-zarr2 --editable . 'zarr==2.18.7' pytest pytest-asyncio hypothesis
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
# GPU_PYTHON names an interpreter that has all of it, where nothing can be installed.
GPU ?= gpu-cu12
GPU_PYTHON ?= .venv/bin/python
GPU_REPORT = benchmarks/results/gpu-check.txt

gpu-check: $(if $(filter .venv/%,$(GPU_PYTHON)),gpu-environment)
	mkdir -p $(dir $(GPU_REPORT))
	$(GPU_PYTHON) -c 'from cas_zarr import gpu; gpu.require()'
	{ $(GPU_PYTHON) -m pytest -m gpu -n 4 -rA --timeout 600 tests/gpu; echo "tests: exit status $$?"; \
	  $(GPU_PYTHON) -m benchmarks.gpu; echo "benchmark: exit status $$?"; } 2>&1 | tee $(GPU_REPORT)
	! grep 'exit status [1-9]' $(GPU_REPORT)

gpu-environment: .venv/test
	$(INSTALL) .venv --editable '.[$(GPU)]'

docs: .venv/test
	.venv/bin/python -m cas_zarr.cli.reference > docs/cli.md

clean:
	rm -rf .venv .venv-3.12 .venv-3.13 .venv-oldest .venv-zarr2 demo-output
	rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
