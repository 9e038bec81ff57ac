# make demo    what it does, in under half a minute
# make test    lint, types, import contracts and the tests
# make negative-controls  bugs planted one at a time, each of which a test has to catch
# make coverage           which lines the tests run
# make bench   what it costs and how fast it is (bench-vllm: with a real vLLM)
# make check-ops   the page in a browser, and metrics and rules under Prometheus' own tool; `make ops-tools` installs
#             both on Debian
# make check-kubernetes  what config/kubernetes renders to, held against the schemas (needs kubectl)
# make check-image       builds the image without a registry and runs it (`make image-tools` installs what it needs on Debian)
# make mutation    changes the core in thousands of places, one at a time: does a test fail?
# make test-vllm   the tests against a real vLLM on the CPU (installs it once, 3 GB): VLLM=0.24.0 for another version
# make matrix      the same for each version that has a lock (hours, 3 GB to 7 GB each): VERSIONS="0.12.0 0.24.0" for some
# make record      writes down anew what a real vLLM answers: VLLM=0.24.0 for another version

PYTHON ?= python3
VENV ?= .venv
# The newest that has a lock.
VLLM ?= $(shell printf '%s\n' locks/vllm-*.txt | sed 's/.*vllm-//; s/\.txt//' | sort -V | tail -1)
VLLM_ENVS ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/lora-sidecar
VLLM_ENV ?= $(VLLM_ENVS)/vllm-$(VLLM)
# More than there are cores: many tests wait for a process or a deadline.
WORKERS ?= 4
SEEDS ?= 2000
FIRST ?= 0
MINUTES ?= 5
# One server at a time, shared by the tests of a suite: each takes a minute to start, and 3 GB.
REAL = -m vllm -p no:xdist -p no:randomly --durations=5
# What needs more than Python, and what tests the tests: each has a target of its own.
NOT_HERE = --ignore tests/e2e --ignore tests/platform/kubernetes --ignore tests/platform/image --ignore tests/meta/mutants
ALONE = -p no:xdist -p no:randomly
PIP = $(VENV)/bin/python -m pip --quiet --disable-pip-version-check

export PYTHONDONTWRITEBYTECODE = 1

.PHONY: demo test simulate soak lint types contracts tests coverage negative-controls check-ops ops-tools \
    check-kubernetes check-image image-tools test-vllm record matrix mutation bench bench-vllm plots vllm-env lock image clean

demo: $(VENV)/.runtime
	@$(VENV)/bin/python -m tests.fakes.demo

test: lint types contracts tests

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

# A long hunt through simulated worlds, on all cores: make simulate SEEDS=20000, or FIRST=1000 to begin elsewhere.
simulate: $(VENV)/.dev
	$(VENV)/bin/python -m tests.simulation.hunt --seeds $(SEEDS) --first $(FIRST)

# One real sidecar beside a server that is hurt again and again: make soak MINUTES=30
soak: $(VENV)/.dev
	$(VENV)/bin/python -m tests.soak.soak --minutes $(MINUTES)

types: $(VENV)/.dev
	$(VENV)/bin/mypy

contracts: $(VENV)/.dev
	$(VENV)/bin/lint-imports

# Some hundred processes are started: each would compile the package anew.
tests: $(VENV)/.dev
	$(VENV)/bin/python -m compileall -q lora_sidecar tests
	$(VENV)/bin/python -m pytest -n $(WORKERS) --dist loadfile -m "not tools" $(NOT_HERE) --durations=5

coverage: $(VENV)/.dev
	$(VENV)/bin/python -m pytest -n $(WORKERS) --dist loadfile -m "not tools" $(NOT_HERE) --cov --cov-report=term

negative-controls: $(VENV)/.dev
	$(VENV)/bin/python -m pytest -n 2 --dist load tests/meta/mutants

check-ops: $(VENV)/.dev
	$(VENV)/bin/python -m pytest -m tools -p no:xdist --durations=5 tests/platform/prometheus tests/platform/browser

# As root on Debian; elsewhere, install promtool (Prometheus) and Chromium by other means.
ops-tools:
	@command -v promtool >/dev/null && command -v chromium >/dev/null || \
	    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
	      apt-get install -y -qq --no-install-recommends prometheus chromium fonts-dejavu-core; }

check-kubernetes: $(VENV)/.kubernetes
	$(VENV)/bin/python -m pytest $(ALONE) tests/platform/kubernetes

# The set-up builds the image, which is part of the first test's time.
check-image: $(VENV)/.dev
	$(VENV)/bin/python -m pytest $(ALONE) -o timeout=300 tests/platform/image

# As root on Debian.
image-tools:
	@command -v podman >/dev/null && command -v runc >/dev/null || \
	    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
	      apt-get install -y -qq --no-install-recommends podman runc; }

test-vllm: $(VENV)/.dev vllm-env
	LORA_SIDECAR_VLLM_PYTHON=$(VLLM_ENV)/bin/python $(VENV)/bin/python -m pytest $(REAL) tests/contract
	LORA_SIDECAR_VLLM_PYTHON=$(VLLM_ENV)/bin/python $(VENV)/bin/python -m pytest $(REAL) tests/e2e -s

record: $(VENV)/.dev vllm-env
	LORA_SIDECAR_VLLM_PYTHON=$(VLLM_ENV)/bin/python $(VENV)/bin/python -m pytest $(REAL) tests/contract --record

# The environments are kept, so a second run begins with the tests.
matrix: $(VENV)/.dev
	PYTHON=$(PYTHON) $(VENV)/bin/python -m tests.matrix --environments $(VLLM_ENVS) $(VERSIONS)

# What was decided is kept in mutants/, so it goes on where it was stopped; one module: make mutation ONLY='lora_sidecar.reconcile.due.*'
mutation: $(VENV)/.mutation
	PATH="$(abspath $(VENV)/bin):$$PATH" $(VENV)/bin/python -m tests.meta.mutants.mutation run --max-children $(WORKERS) $(if $(ONLY),'$(ONLY)')
	$(VENV)/bin/python -m tests.meta.mutants.score

bench: $(VENV)/.dev
	$(VENV)/bin/python -m benchmarks
	@$(MAKE) --no-print-directory plots

bench-vllm: $(VENV)/.dev vllm-env
	LORA_SIDECAR_VLLM_PYTHON=$(VLLM_ENV)/bin/python $(VENV)/bin/python -m benchmarks --real
	@$(MAKE) --no-print-directory plots

plots: $(VENV)/.bench
	$(VENV)/bin/python -m benchmarks.plots

vllm-env:
	PYTHON=$(PYTHON) bash scripts/vllm-env.sh $(VLLM) $(VLLM_ENV)

# The environment of the product alone, and on top of it that of its tests; both from lock files with hashes.
# A lock is complete, so nothing is resolved: what a package asks for besides would depend on the day.
$(VENV)/.runtime: locks/runtime.txt
	@echo "making $(VENV) from locks/runtime.txt"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] < (3, 11))' || \
	    { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.13"; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install --require-hashes --no-deps -r locks/runtime.txt
	@touch $@

$(VENV)/.dev: locks/dev.txt pyproject.toml $(VENV)/.runtime
	@echo "adding locks/dev.txt to $(VENV)"
	@$(PIP) install --require-hashes --no-deps -r locks/dev.txt
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

# What draws the plots is in no other environment.
$(VENV)/.bench: locks/bench.txt $(VENV)/.dev
	@echo "adding locks/bench.txt to $(VENV)"
	@$(PIP) install --require-hashes --no-deps -r locks/bench.txt
	@touch $@

$(VENV)/.kubernetes: locks/kubernetes.txt $(VENV)/.dev
	@$(PIP) install --require-hashes --no-deps -r locks/kubernetes.txt
	@touch $@

$(VENV)/.mutation: locks/mutation.txt $(VENV)/.dev
	@echo "adding locks/mutation.txt to $(VENV)"
	@$(PIP) install --require-hashes --no-deps -r locks/mutation.txt
	@touch $@

# Needs `uv`; run it after changing the dependencies in pyproject.toml.
lock:
	uv pip compile --universal --generate-hashes --python-version 3.11 --no-annotate --no-header --no-emit-index-url \
	    -o locks/runtime.txt pyproject.toml
	uv pip compile --universal --generate-hashes --python-version 3.11 --no-annotate --no-header --no-emit-index-url \
	    -c locks/runtime.txt --group dev -o locks/dev.txt pyproject.toml
	uv pip compile --universal --generate-hashes --python-version 3.11 --no-annotate --no-header --no-emit-index-url \
	    -c locks/dev.txt --group bench -o locks/bench.txt
	uv pip compile --universal --generate-hashes --python-version 3.11 --no-annotate --no-header --no-emit-index-url \
	    -c locks/dev.txt --group kubernetes -o locks/kubernetes.txt
	uv pip compile --universal --generate-hashes --python-version 3.11 --no-annotate --no-header --no-emit-index-url \
	    -c locks/dev.txt --group mutation -o locks/mutation.txt

# With whichever of the three is there; docker counts only where its daemon answers.
IMAGE ?= lora-sidecar
BUILDER ?= $(firstword $(shell docker info >/dev/null 2>&1 && echo docker) $(notdir $(shell command -v podman buildah 2>/dev/null)))
image:
	@test -n "$(BUILDER)" || { echo "make image needs docker (with its daemon), podman or buildah"; exit 1; }
	$(BUILDER) build $(if $(filter docker,$(BUILDER)),,--format docker) --build-arg REVISION=$(shell git rev-parse HEAD) \
	    $(BUILD_ARGS) -t $(IMAGE) .

clean:
	rm -rf $(VENV) mutants .coverage* .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache *.egg-info
