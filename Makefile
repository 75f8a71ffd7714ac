# The one vocabulary. `make` lists it.
PYTHON ?= python3
UV_VERSION := 0.13.9
UV := $(or $(shell command -v uv),.uv/bin/uv)
# uv does not read pip's configuration: hand it the index that pip is set to, if any.
PIP_INDEX := $(or $(PIP_INDEX_URL),$(shell $(PYTHON) -m pip config get global.index-url 2>/dev/null))
export UV_DEFAULT_INDEX ?= $(PIP_INDEX)
ifeq ($(strip $(UV_DEFAULT_INDEX)),)
unexport UV_DEFAULT_INDEX
endif
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export UV_HTTP_TIMEOUT ?= 180
# uv trusts its own certificates only; behind a company's proxy the machine's are needed, where it has any.
ifneq ($(wildcard /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt /etc/ssl/cert.pem),)
export UV_SYSTEM_CERTS ?= true
endif
INSTALLED := .venv/installed
# Optional for those who use Habitus, and large: not in requirements.lock.
SPARK := "pyspark>=4,<5"

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-ci test-slow test-times coverage test-shuffled spark check mutants crash crash-stages full-disk siege studies bench picture report-pictures run-pictures format lock serve

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 17

setup: $(INSTALLED) ## make .venv with exactly what requirements.lock says

.uv/bin/uv:
	@$(PYTHON) -m venv .uv && .uv/bin/python -m pip install --quiet uv==$(UV_VERSION)

$(INSTALLED): requirements.lock pyproject.toml | $(filter .uv/bin/uv,$(UV))
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Habitus needs Python 3.11 or later, but $(PYTHON) is " + sys.version.split()[0] + ": name another with make PYTHON=...")'
	@echo "Setting up .venv from requirements.lock (a few minutes the first time)"
	@test -x .venv/bin/python || $(PYTHON) -m venv --without-pip .venv
	@$(UV) pip sync --quiet --compile-bytecode --python .venv/bin/python --require-hashes requirements.lock
	@$(UV) pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation --editable .
	@touch $@

demo: setup ## run the main job on examples/ecom
	@.venv/bin/habitus run examples/ecom/habitus.toml

# As many processes as cores run tests already: more threads would wait for each other. What one process compiles of
# our modules, the next need not.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 .venv/bin/pytest -n auto --dist worksteal

test: setup ## all tests but those that take long, run the whole job or need a browser, a server or Spark
	@$(PYTEST)

test-ci: setup spark ## the whole job, and one of each kind that needs the real thing; .ci/run is make check and this
	@$(PYTEST) -m ci

test-slow: setup spark ## everything, with the laws on many more examples
	@HABITUS_EXAMPLES=20 $(PYTEST) -m ""

test-times: setup ## the fifty slowest tests of make test, so that you see what made it slow
	@$(PYTEST) -q --slowest 50

coverage: setup spark ## the lines and branches that no test of make test and make test-ci runs
	@$(PYTEST) -q -m "not slow" --cov --cov-report=term-missing:skip-covered

test-shuffled: setup ## make test in random orders: three times in parallel, three times in one process
	@for seed in 1 2 3; do $(PYTEST) -q --shuffle $$seed || exit 1; done
	@for seed in 4 5 6; do $(PYTEST) -q -n 0 --dist no --shuffle $$seed || exit 1; done

spark:
	@$(UV) pip install --quiet --python .venv/bin/python $(SPARK)

check: setup ## ruff, mypy strict, pytest with doctests and the README's code
	@.venv/bin/ruff format --check .
	@.venv/bin/ruff check .
	@.venv/bin/mypy
	@$(MAKE) --no-print-directory test

mutants: setup ## plausible mistakes in the product, and by which test each is told (minutes)
	@.venv/bin/python tests/mutants.py

KILLS ?= 200
crash: setup ## kill publishing at random moments, while others read what it publishes: make crash KILLS=20
	@.venv/bin/python tests/crash.py --kills $(KILLS)

STAGE_KILLS ?= 100
crash-stages: setup ## kill every stage at random moments and run it again to the end: make crash-stages STAGE_KILLS=20
	@.venv/bin/python tests/crash_stages.py --kills $(STAGE_KILLS)

FILLS ?= 39
full-disk: setup ## let every stage run on a disk that takes no more, then on one that does; as root, who may mount one
	@.venv/bin/python tests/full_disk.py --fills $(FILLS)

MINUTES ?= 10
siege: setup ## attack habitus serve without a key, each way and then all at once: make siege MINUTES=1
	@.venv/bin/python tests/siege.py --minutes $(MINUTES) --lookups

EVENTS ?= 10000000
DAYS ?= 180
ROUNDS ?= 3
ONLY ?=
studies: setup spark ## all simulations and benchmarks anew, whose results docs/benchmarks.md holds (hours; or ONLY=refits,...)
	@.venv/bin/python benchmarks/bench.py studies --only "$(ONLY)"

bench: setup spark ## Habitus beside other tools, in turn: make bench EVENTS=100000000 ROUNDS=5 ONLY=duckdb_fast,polars_slots
	@.venv/bin/python benchmarks/bench.py sessions --events $(EVENTS) --days $(DAYS) --rounds $(ROUNDS) --only "$(ONLY)"

picture: setup ## draw docs/demo.svg, what the README shows of make demo
	@.venv/bin/python docs/make_demo_svg.py

report-pictures: setup ## draw docs/report/*.png, the sections of a report, with Chromium
	@.venv/bin/python docs/make_report_pictures.py

run-pictures: setup ## draw docs/schedules/*.png, what make serve shows, which has to be running, with Chromium
	@.venv/bin/python docs/make_schedule_pictures.py

format: setup ## let ruff format and mend
	@.venv/bin/ruff format .
	@.venv/bin/ruff check --fix .

PREFECT_PORT ?= 4200
MLFLOW_PORT ?= 5000
# Whose models the pages show: what prefect.yaml schedules, unless another is named.
CONFIG ?= $(shell sed -nE "s/^[^\#]*config: *[\"']?([^\"',}]+).*/\1/p" prefect.yaml | head -n 1)
serve: SHELL := /bin/bash
serve: export PREFECT_HOME := $(CURDIR)/.prefect
serve: export PREFECT_API_URL := http://127.0.0.1:$(PREFECT_PORT)/api
serve: export PREFECT_SERVER_ANALYTICS_ENABLED := false
serve: export DO_NOT_TRACK := 1
serve: export MLFLOW_SERVER_ENABLE_JOB_EXECUTION := false
serve: export CONFIG := $(CONFIG)
serve: export STORE_OF_CONFIG := import os; from features.addresses import file_address, sqlite_address; \
	from flows.configuration import load; mlruns = load(os.environ["CONFIG"]).mlruns; \
	print(mlruns, sqlite_address(mlruns / "mlflow.db"), file_address(mlruns / "artifacts"), sep="\n")
# Each program gets a process group of its own (set -m), so that the worker stops before the server it reports to.
serve: setup ## a local Prefect server with the schedules, a worker, and the models of CONFIG, until Ctrl-C
	@mkdir -p $$PREFECT_HOME; jobs=(); \
	store=$$(.venv/bin/python -c "$$STORE_OF_CONFIG" 2> $$PREFECT_HOME/config.log) \
		|| { sed -n '$$s/^[A-Za-z.]*: //p' $$PREFECT_HOME/config.log; exit 2; }; \
	mapfile -t store <<< "$$store"; mlruns="$${store[0]}"; mkdir -p "$$mlruns"; \
	stop() { trap '' INT TERM; trap - EXIT; exec 2>/dev/null; \
		while (( $${#jobs[@]} )); do kill -- -$${jobs[-1]}; \
			for _ in {1..50}; do kill -0 $${jobs[-1]} || break; sleep 0.2; done; \
			kill -KILL -- -$${jobs[-1]}; unset 'jobs[-1]'; done; }; \
	trap stop EXIT; trap 'exit 0' INT TERM; \
	set -m; \
	.venv/bin/prefect server start --host 127.0.0.1 --port $(PREFECT_PORT) \
		> $$PREFECT_HOME/server.log 2>&1 & jobs+=($$!); \
	.venv/bin/mlflow ui --host 127.0.0.1 --port $(MLFLOW_PORT) --workers 1 \
		--backend-store-uri "$${store[1]}" --artifacts-destination "$${store[2]}" \
		> "$$mlruns/ui.log" 2>&1 & jobs+=($$!); \
	set +m; \
	echo "Starting Prefect and MLflow (their logs: .prefect/server.log, $$mlruns/ui.log)"; \
	until .venv/bin/python -c "import urllib.request as r; r.urlopen('$$PREFECT_API_URL/health')" 2>/dev/null; do \
		kill -0 $${jobs[0]} 2>/dev/null || { tail $$PREFECT_HOME/server.log; exit 1; }; sleep 0.5; done; \
	{ .venv/bin/prefect --no-prompt work-pool create habitus --type process --overwrite \
		&& .venv/bin/prefect --no-prompt deploy --all; } > $$PREFECT_HOME/deploy.log 2>&1 < /dev/null \
		|| { cat $$PREFECT_HOME/deploy.log; exit 1; }; \
	echo "Schedules and runs: http://127.0.0.1:$(PREFECT_PORT)"; \
	echo "Models:             http://127.0.0.1:$(MLFLOW_PORT) (of $$CONFIG)"; \
	echo "Ctrl-C stops all of it."; \
	set -m; .venv/bin/prefect worker start --pool habitus --type process & jobs+=($$!); set +m; \
	wait $$!

lock: | $(filter .uv/bin/uv,$(UV)) ## resolve requirements.lock anew
	@$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
		--no-emit-index-url --no-emit-find-links --group dev pyproject.toml --output-file requirements.lock
