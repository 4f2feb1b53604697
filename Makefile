# Gradeline. `make demo` shows it, `make test` proves it, `make run` keeps it up. All of them set up what they need.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
export PYTHONPATH := $(CURDIR)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help demo run status test chaos check format bench bench-ocr bench-uploads bench-engine bench-recovery \
        setup setup-dev setup-bench lock clean

help:  ## What there is to make
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

demo: setup  ## Start the stack, upload the sample quiz, watch it being graded, stop (SAMPLE=quiz|typed)
	@$(PY) -m deploy.local.demo $(if $(SAMPLE),--sample $(SAMPLE))

run: setup  ## Keep the stack up until Ctrl-C (PORT=8080 DATA=var; DATABASE_URL, REDIS_URL, S3_*, SMTP_URL replace parts)
	@exec $(PY) -m deploy.local run

status: setup  ## Is the stack that DATA names up and well?
	@$(PY) -m deploy.local status

test: setup-dev  ## The whole suite, on real PostgreSQL and Valkey (ARGS=... is passed to pytest)
	@$(PY) -m pytest $(ARGS)

chaos: setup-dev  ## Break the running system in 200 seeded ways and check every promise (SEEDS=50 SEED=123 PURE=kill_workers)
	@$(PY) -m tests.chaos --seeds $(or $(SEEDS),200) $(if $(SEED),--seed $(SEED)) $(if $(PURE),--pure $(PURE))

check: setup-dev  ## Lint, format, strict types, import rules
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy
	@$(VENV)/bin/lint-imports

format: setup-dev  ## Put the code in shape
	@$(VENV)/bin/ruff check --fix .
	@$(VENV)/bin/ruff format .

bench: bench-uploads bench-ocr bench-engine bench-recovery  ## All benchmarks, each beside its floor or peer in the same run

bench-uploads: setup-dev  ## Latency of POST /uploads with 1 MB, and the idle stack's memory
	@$(PY) -m bench.uploads

bench-ocr: setup-dev  ## Reading through the platform beside a bare RapidOCR loop (OCR_DATA=folder of pages)
	@$(PY) -m bench.ocr_platform

bench-engine: setup-bench  ## The job engine beside Dramatiq, Celery, Procrastinate and PgQueuer (ARGS="drain --jobs 5000")
	@$(PY) -m bench.engine $(ARGS)

bench-recovery: setup-bench  ## How long a worker's job waits after kill -9, beside Dramatiq and Celery (3 min)
	@$(PY) -m bench.engine recovery $(ARGS)

setup: $(VENV)/.run-installed
setup-dev: $(VENV)/.dev-installed
setup-bench: $(VENV)/.bench-installed

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Gradeline needs Python 3.11 or newer; '$(PYTHON)' is older. Say which: make PYTHON=python3.12 …"; exit 1; }
	@$(PYTHON) -m venv $(VENV) \
	  || { echo "python3 -m venv failed. On Debian and Ubuntu: apt-get install python3-venv"; exit 1; }

$(VENV)/.run-installed: requirements/run.lock | $(VENV)/bin/python
	@echo "Installing what Gradeline runs on into $(VENV) (hash-locked, once) …"
	@$(PY) -m pip install --quiet --require-hashes --requirement requirements/run.lock
	@touch $@

$(VENV)/.dev-installed: requirements/dev.lock | $(VENV)/bin/python
	@echo "Installing what Gradeline runs on and is tested with into $(VENV) (hash-locked, once) …"
	@$(PY) -m pip install --quiet --require-hashes --requirement requirements/dev.lock
	@touch $@ $(VENV)/.run-installed

$(VENV)/.bench-installed: requirements/bench.lock | $(VENV)/.dev-installed
	@echo "Installing the peers that the engine is measured against into $(VENV) (hash-locked, once) …"
	@$(PY) -m pip install --quiet --require-hashes --requirement requirements/bench.lock
	@touch $@

EXTRAS := --extra api --extra ocr --extra grading --extra notifier --extra scheduler --extra local
COMPILE := uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate --quiet

lock:  ## Renew the hash-locked requirements from pyproject.toml (needs uv)
	@$(COMPILE) $(EXTRAS) --output-file requirements/run.lock
	@$(COMPILE) $(EXTRAS) --extra dev --constraints requirements/run.lock --output-file requirements/dev.lock
	@$(COMPILE) --extra bench --constraints requirements/dev.lock --output-file requirements/bench.lock

clean:  ## Remove what was set up; var/ (data) stays
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
