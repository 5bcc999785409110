# `make demo` and `make test` need only Python 3.11+ and make; they install the rest.

PYTHON ?= python3
VENV := .venv
BENCHMARK ?= demo
INSTALLED := $(VENV)/.installed

# Rules of the workflow call `sanflow`, so the environment's commands come first in PATH.
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export MLFLOW_DISABLE_TELEMETRY := true

.PHONY: help install demo report test test-all lint clean

help: ## Show this list.
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

install: $(INSTALLED) ## Make .venv and install everything in it.

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Expected Python 3.11 or newer, but $(PYTHON) is " + sys.version.split()[0] + "; try: make PYTHON=python3.12 install" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,slurm,kubernetes,postgres,video,onnx]'
	@touch $@

demo: install ## Run the demo benchmark, write its report, print its table and the page to open.
	snakemake --config benchmark=demo
	@$(MAKE) --no-print-directory report BENCHMARK=demo
	sanflow show results/demo
	@echo "Open this page in a browser: results/demo/explorer/index.html"

report: install ## Write results/<BENCHMARK>/report.html from a finished run.
	snakemake --config benchmark=$(BENCHMARK) --report results/$(basename $(notdir $(BENCHMARK)))/report.html

test: install ## Run the fast tests, which need no server.
	pytest -q -n 2 --dist worksteal -m "not slow and not server and not cluster and not browser"

test-all: install ## Run every test; starts real servers on loopback (see CONTRIBUTING.md).
	bash .ci/run

lint: install ## Check formatting, types and the workflow.
	ruff check .
	ruff format --check .
	snakefmt --check Snakefile workflow
	mypy
	snakemake --lint

clean: ## Remove results and the environment; downloaded data stays.
	rm -rf results $(VENV)
