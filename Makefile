# pathor1: `make demo` and `make test` are the two that you need; each sets up what it uses.

SHELL := /bin/bash
.DEFAULT_GOAL := help

# Python 3.11, which the locks are made for; 3.12 where there is no other. environment.py says it where there is neither.
PYTHON ?= $(or $(shell for python in python3.11 python3 python3.12; do \
	"$$python" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null \
	&& echo "$$python" && break; done),python3)

# cpu or gpu: which lock is installed.
BACKEND ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)

# What `make demo` trains by: grpo or dapo.
ALGORITHM ?= grpo

# Files of tests that run at the same time; one of the engine and service tests has a Ray of its own, and takes 3 GB.
LANES ?= 2

CODE := pathor1 rewards ray_jobs requirements
TIERS := unit engine service
BENCHMARKS := step_overhead first_step memory growth image_bytes stream dynamic_sampling supervised clip

# KubeRay's release that the manifests are for, and where it keeps its definitions of RayJob and RayCluster.
KUBERAY := 1.7.0
CRDS ?= https://raw.githubusercontent.com/ray-project/kuberay/v$(KUBERAY)/helm-chart/kuberay-operator/crds

.PHONY: help env demo check format test $(TIERS:%=test-%) bench crds lock clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

env:  ## Install the locked environment into .venv (BACKEND=cpu or gpu; found by itself when not given)
	@$(PYTHON) requirements/environment.py install $(BACKEND)

demo: env  ## Train a small vision-language model here on Ray, by GRPO or ALGORITHM=dapo, and show what it learned
	@.venv/bin/pathor1 demo --algorithm $(ALGORITHM)

check: env  ## Lint, formatting, types, and the direction of imports: under a minute
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy $(CODE)
	.venv/bin/hadolint cluster/Dockerfile
	.venv/bin/pytest -q tests/unit/test_imports.py

format: env  ## Put the code into ruff's format and mend what ruff can mend
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

test: $(TIERS:%=test-%)  ## Run all tests that need no GPU, tier by tier

test-unit: env  ## Run the unit tests: no Ray, seconds
test-engine: env  ## Run the engine tests: real Ray, verl and vLLM, minutes
test-service: env  ## Run the service tests: jobs, logs, stops and faults, minutes
$(TIERS:%=test-%):
	.venv/bin/pytest -q --numprocesses $(LANES) --dist loadfile --durations 15 tests/$(@:test-%=%)

bench: env  ## Run all benchmarks on this machine's CPU, an idle one, into runs/benchmarks: hours
	@mkdir -p runs/benchmarks
	@set -o pipefail; for name in $(BENCHMARKS); do \
		echo "== $$name"; \
		.venv/bin/python benchmarks/$$name.py --out runs/benchmarks/$$name.json | tee runs/benchmarks/$$name.txt || exit 1; done

# In order, one at a time, also under `make -j`: tests of a tier rely on what the tier before has shown.
.NOTPARALLEL:

crds:  ## Fetch KubeRay's definitions, without which the tests of the manifests are skipped
	@rm -rf .crds.part && mkdir .crds.part
	@for kind in rayjobs rayclusters; do \
		curl --fail --silent --show-error --location --output .crds.part/$$kind.yaml $(CRDS)/ray.io_$$kind.yaml || exit 1; done
	@cd .crds.part && sha256sum --check --quiet ../tests/schemas/kuberay-$(KUBERAY).sha256
	@rm -rf .crds && mv .crds.part .crds

lock: ## Remake requirements/cpu.txt and gpu.txt from pyproject.toml (a pin that still fits stays)
	@$(PYTHON) requirements/environment.py lock

clean:  ## Remove what make made: the environment and caches, never a run
	rm -rf .venv .uv .crds .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find $(CODE) tests -name __pycache__ -type d -prune -exec rm -rf {} +
