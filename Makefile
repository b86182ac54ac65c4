# Needs Python 3.11 to 3.14 as $(PYTHON), and a package registry that pip reaches. Nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
STAMP := $(VENV)/.installed
export DAGSTER_HOME ?= $(CURDIR)/.dagster
export DAGSTER_DISABLE_TELEMETRY := yes
export ACME_RAG_ROOT ?= $(CURDIR)
# Dagster warns on every call that its own command line will be renamed.
export PYTHONWARNINGS ?= ignore
# Dagster lets a `.env` in the working directory overwrite the environment. Run elsewhere, it cannot; the settings read
# the project's `.env` themselves, and there the environment wins.
IN_HOME := cd "$(DAGSTER_HOME)" &&
# Processes that share the tests: many tests wait for a process or the disk. A file stays with one of them, because what
# its tests share is built once; conftest.py says which files begin. A process that dies is not replaced: with a
# replacement pytest-xdist 3.8 waits forever for the rest of the file, without one the run ends and names the test.
WORKERS ?= 2
SHARED_OUT := -n $(WORKERS) --dist loadfile --no-loadscope-reorder --max-worker-restart=0

.PHONY: help install materialize refresh retrain gate ui prune test test-fast lint format clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

install: $(STAMP)  ## Create .venv with the pinned dependencies
	@test -e "$(DAGSTER_HOME)/dagster.yaml" || { mkdir -p "$(DAGSTER_HOME)" && cp dagster.yaml "$(DAGSTER_HOME)/dagster.yaml"; }

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14) and "acme-rag-pipeline needs Python 3.11 to 3.14: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	"$(BIN)"/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	"$(BIN)"/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[pdf,office,lora,dev,interop]'
	touch $(STAMP)

materialize: install  ## Build everything: documents to a promoted, searchable index
	@$(IN_HOME) "$(BIN)/dagster" asset materialize --select '*' -m acme_rag_pipeline.definitions

refresh: install  ## Bring what is served to the documents of today, without training
	@$(IN_HOME) "$(BIN)/dagster" job execute -j refresh -m acme_rag_pipeline.definitions

retrain: install  ## Pairs for what changed, a new candidate, a comparison, a decision
	@$(IN_HOME) "$(BIN)/dagster" job execute -j retrain -m acme_rag_pipeline.definitions

gate: install  ## Fails unless the newest candidate was promoted and no check finds a defect
	@$(IN_HOME) "$(BIN)/dagster" job execute -j gate -m acme_rag_pipeline.definitions

ui: install  ## Webserver and daemon on http://localhost:3000
	@$(IN_HOME) "$(BIN)/dagster" dev -w "$(CURDIR)/workspace.yaml" -p $${PORT:-3000}

prune: install  ## Delete finished runs older than DAYS=90 from Dagster's history
	@$(IN_HOME) "$(BIN)/python" -m acme_rag_pipeline.orchestration.prune --days $${DAYS:-90}

test: install lint  ## The whole suite, slow tests too
	"$(BIN)"/python -m pytest -q $(SHARED_OUT)

test-fast: install  ## Without the slow tests
	"$(BIN)"/python -m pytest -q $(SHARED_OUT) -m 'not slow'

lint: install  ## ruff and mypy
	"$(BIN)"/ruff check .
	"$(BIN)"/ruff format --check .
	"$(BIN)"/mypy

format: install  ## Let ruff mend what it can
	"$(BIN)"/ruff check --fix .
	"$(BIN)"/ruff format .

clean:  ## Delete .dagster, .venv and data/store, paid LLM answers, decisions and reports included
	rm -rf data/store .dagster $(VENV)
