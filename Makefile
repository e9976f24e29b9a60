# Every command works alone on a fresh clone with Python 3.11 or newer: the environment in .venv is made when it is
# missing, and again when the pinned versions change. What CI does, it does through these targets.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory
# Images of containers set it, and then each of the hundreds of processes that the tests start compiles the whole package
# anew: 0.4 s of CPU each time.
unexport PYTHONDONTWRITEBYTECODE

# The first that is new enough: a system's own python3 is often older than another one beside it.
NEW_ENOUGH := -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p $(NEW_ENOUGH) && echo $$p && exit; done; echo python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The peers that `make bench` measures have an environment of their own: what they depend on is no concern of ours.
BENCH_VENV := .venv-bench
BENCH := $(BENCH_VENV)/bin/python -m benchmarks
BENCH_STAMP := $(BENCH_VENV)/.installed
SOURCES := $(wildcard durable tests examples benchmarks)
# One process more than two cores: it computes while others wait for commits, leases and children. A fourth gains nothing.
# Of tests/chaos the small forms; each gate with its control takes minutes: `make chaos-quick`.
PYTEST := $(BIN)/pytest -n 3 --dist loadgroup --ignore=tests/chaos/test_chaos.py

.PHONY: help
help:  ## Show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-14s %s\n", $$1, $$2 }'

$(STAMP): constraints.txt pyproject.toml
	@python="$(PYTHON)"; "$$python" $(NEW_ENOUGH) || \
		{ echo "durable needs Python 3.11 or newer; $$python is $$("$$python" --version 2>/dev/null || echo missing)." >&2; \
		  echo "Name another one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12" >&2; exit 1; }; \
	echo "Setting up $(VENV) with $$("$$python" --version)"; \
	rm -f $@; \
	"$$python" -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --require-hashes -r constraints.txt
	@# Hashes and editable installs do not mix: the package comes second, built by the hatchling pinned above.
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(BENCH_STAMP): benchmarks/constraints.txt pyproject.toml
	@"$(PYTHON)" $(NEW_ENOUGH) || { echo "durable needs Python 3.11 or newer: make $(MAKECMDGOALS) PYTHON=…" >&2; exit 1; }
	@echo "Setting up $(BENCH_VENV) with $$("$(PYTHON)" --version)"
	@rm -f $@
	@"$(PYTHON)" -m venv $(BENCH_VENV)
	@$(BENCH_VENV)/bin/python -m pip install -qq --disable-pip-version-check --require-hashes -r benchmarks/constraints.txt
	@$(BENCH_VENV)/bin/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

.PHONY: setup
setup: $(STAMP)  ## Make the environment in .venv (the other targets do it by themselves)

.PHONY: demo
demo: $(STAMP)  ## 500 orders, two workers, one killed; DATABASE_URL=postgresql://… for Postgres instead of a file
	@# Only when it was named here: a variable that stands in the environment may name a production database.
	@DATABASE_URL='$(if $(filter command,$(origin DATABASE_URL)),$(DATABASE_URL))' $(BIN)/python -m examples.orders.demo

.PHONY: test
test: $(STAMP)  ## All tests, on memory, SQLite and a Postgres that is found or started
	@$(PYTEST) $(ARGS)

.PHONY: races
races: $(STAMP)  ## Signals, deadlines, children and cancels against what a run does then: 2,000 times each, on Postgres
	@RACES=2000 $(BIN)/pytest tests/races --durations=0 $(ARGS)

.PHONY: ticks
ticks: $(STAMP)  ## A schedule of every second for two minutes, ten engines, one killed every three seconds
	@TICK_ENGINES=10 TICK_SECONDS=120 $(BIN)/pytest tests/processes/test_ticks.py --timeout=600 $(ARGS)

.PHONY: model
model: $(STAMP)  ## Random store operations on memory, SQLite, Postgres and an oracle; OPERATIONS=200000 SEED=1
	@$(BIN)/python -m tests.model --operations $(or $(OPERATIONS),200000) --seed $(or $(SEED),1) $(ARGS)

.PHONY: evict
evict: $(STAMP)  ## All tests of the engine, with each run evicted and replayed after every record
	@EVICT=1 $(PYTEST) tests/engine $(ARGS)

.PHONY: fuzz-http
fuzz-http: $(STAMP)  ## 10,000 requests that schemathesis makes up from the OpenAPI document; another seed each time
	@FUZZ_EXAMPLES=400 FUZZ_SEED=$${FUZZ_SEED:-$$RANDOM} $(BIN)/pytest tests/http/test_fuzz.py -o faulthandler_timeout=0 --durations=0 $(ARGS)

.PHONY: chaos
chaos: $(STAMP)  ## Kills, bad links, full disks, …: an hour and a half, 20 min of it soak; each gate writes its line of docs/reliability.md; ARGS="kills link", ARGS=--missing to go on
	@$(BIN)/python -m tests.chaos $(ARGS)

.PHONY: chaos-quick
chaos-quick: $(STAMP)  ## A short form of each gate of chaos, and its control: about five minutes
	@$(BIN)/pytest tests/chaos --durations=0 $(ARGS)

.PHONY: simulate
simulate: $(STAMP)  ## Whole deployments in one thread, each seed with its own faults; 30 min for SEEDS=10000 (FIRST=1)
	@$(BIN)/python -m tests.simulation --seeds $(or $(SEEDS),10000) --first $(or $(FIRST),1) $(ARGS)

.PHONY: check
check: $(STAMP)  ## Format, lint, types (mypy and pyright, strict) and the structure of the project
	@$(BIN)/ruff format --check $(SOURCES)
	@$(BIN)/ruff check $(SOURCES)
	@$(BIN)/mypy $(SOURCES)
	@$(BIN)/pyright --version >/dev/null || \
		{ echo "pyright did not start, so its check did not run: it needs Node and its package from the npm registry." >&2; exit 1; }
	@$(BIN)/pyright $(SOURCES)
	@$(BIN)/pytest -q tests/project/test_structure.py tests/project/test_exports.py

.PHONY: fmt
fmt: $(STAMP)  ## Format, and repair what can be repaired
	@$(BIN)/ruff check --fix-only --quiet $(SOURCES)
	@$(BIN)/ruff format $(SOURCES)

.PHONY: bench
bench: $(BENCH_STAMP)  ## Measure durable beside its peers, two minutes; writes benchmarks/results.md; ARGS="--only B --contestants durable,dbos"
	@$(BENCH) $(ARGS)

.PHONY: bench-full
bench-full: $(BENCH_STAMP)  ## The same at full size, with ten minutes of load and a million runs of backlog: over an hour
	@$(BENCH) --full $(ARGS)

.PHONY: bench-exchange
bench-exchange: $(STAMP)  ## The same for fan-out, children, signals and transactions; ARGS="--store sqlite --only children"
	@$(BIN)/python -m benchmarks.exchange $(ARGS)

.PHONY: bench-http
bench-http: $(STAMP)  ## Triggers per second over HTTP, one server process, 64 connections; ARGS="--store sqlite --profile"
	@$(BIN)/python -m benchmarks.http $(ARGS)

.PHONY: bench-check
bench-check: $(STAMP)  ## Is this tree slower than a commit? Counted work, then both in turns; BASE=main
	@$(BIN)/python -m benchmarks.check $(or $(BASE),HEAD) $(ARGS)

.PHONY: image
image:  ## Build the image of examples/standalone, and ask it for its version; needs Docker
	@docker build --quiet -f examples/standalone/Dockerfile -t durable-standalone .
	@docker run --rm durable-standalone durable --version

.PHONY: lock
lock: $(STAMP)  ## Pin the newest versions anew, with hashes, for every supported Python
	@$(BIN)/python -m pip install -qq --disable-pip-version-check uv
	@{ sed '/^$$/q' constraints.txt; \
	   $(BIN)/uv pip compile --no-config --universal --python-version 3.11 --extra dev --generate-hashes --upgrade --quiet \
	     --no-header --no-annotate --no-emit-index-url --no-emit-find-links pyproject.toml; } > constraints.new
	@mv constraints.new constraints.txt

.PHONY: lock-bench
lock-bench: $(STAMP)  ## The same for the environment of `make bench`
	@$(BIN)/python -m pip install -qq --disable-pip-version-check uv
	@{ sed '/^$$/q' benchmarks/constraints.txt; \
	   $(BIN)/uv pip compile --no-config --universal --python-version 3.11 --generate-hashes --upgrade --quiet \
	     --no-header --no-annotate --no-emit-index-url --no-emit-find-links pyproject.toml benchmarks/requirements.in; \
	 } > benchmarks/constraints.new
	@mv benchmarks/constraints.new benchmarks/constraints.txt

.PHONY: clean
clean:  ## Remove the environment and what tools left behind
	@rm -rf $(VENV) $(BENCH_VENV) dist build .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +
