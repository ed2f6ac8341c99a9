# make demo       sets up, then flies the demo and writes out/demo/report.html
# make test       sets up, then lints, type-checks, checks the import layers and runs the tests
# make test-all   the same with the slow tests
# make bench      the measured tables of README

PYTHON ?= python3
DEVICE ?= auto
BIN := .venv/bin
READY := .venv/.ready

# Machines with a pinned local wheel (and CI) take that one release through pip, which knows
# find-links from its environment; people take the wheel that fits their driver.
ifneq ($(CI)$(PIP_FIND_LINKS),)
TORCH := $(BIN)/pip install --quiet --no-compile torch==2.13.0
else
TORCH := $(BIN)/uv pip install --quiet --python $(BIN)/python --torch-backend=auto "torch>=2.9,<3"
endif

.PHONY: demo test test-all bench check clean

demo: $(READY)
	$(BIN)/tnav demo --out out/demo --device $(DEVICE)

test: check
	$(BIN)/pytest -m "not slow"

test-all: check
	$(BIN)/pytest

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)
	$(BIN)/tnav bench render --device $(DEVICE)
	$(BIN)/tnav bench match --quick --device $(DEVICE)
	$(BIN)/tnav bench covariance --device $(DEVICE)
	$(BIN)/tnav bench pose --device $(DEVICE)
	$(BIN)/tnav bench fix --device $(DEVICE)
	$(BIN)/tnav bench fix-model --quick --device $(DEVICE)
	$(BIN)/tnav bench filter --quick --device $(DEVICE)
	$(BIN)/tnav bench relief
	$(BIN)/tnav bench corridor
	$(BIN)/tnav bench demo --device $(DEVICE)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v < (3, 15) else f"python {v[0]}.{v[1]} found, 3.11 to 3.14 expected: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet uv
	$(TORCH)
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e . --group dev
	touch $(READY)

clean:
	rm -rf .venv out
