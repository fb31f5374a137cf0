# The verbs of Twinpod. `make help` lists them; CONTRIBUTING.md says when to use which.
.DEFAULT_GOAL := help
PY := .venv/bin/python
STUBS := python/twinpod/rpc/v1
SAMPLE := manifests/samples/reverse-letters.yaml
TESTS ?= tests/unit tests/structure tests/flow
SURVIVAL := tests/flow/test_survival.py

.PHONY: help setup demo smoke images demo-local test test-survival test-cluster verify protos crds pins bench bench-rollout bench-learning bench-scale bench-operator soak cluster-up cluster-down cluster-kubeconfig doctor clean

help: ## list the verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## third-party packages (once a machine) and this checkout's .venv (seconds)
	@./tools/setup

demo: setup ## the main job: the reverse-letters sample on Kubernetes (TWINPOD_CONTEXT, else a cluster made here, else local mode)
	@$(PY) tools/demo

smoke: setup ## a job and a pool that prove themselves on Kubernetes; the exit code tells; never falls back to local mode
	@$(PY) tools/demo --smoke

images: setup ## build the container images with buildah (needs root); unchanged ones cost seconds
	@$(PY) tools/images build

demo-local: $(PY) ## the same without set-up; resumes runs/<job> where it stopped
	@.venv/bin/twinpod run $(SAMPLE) --local

test: setup ## unit, structure and flow tests (some minutes)
	@$(PY) -m pytest $(TESTS) --ignore $(SURVIVAL)

test-survival: setup ## kill -9 of every process in every phase of a real run (a quarter of an hour)
	@$(PY) -m pytest $(SURVIVAL) -s

test-cluster: setup ## the operator and the cluster against real API servers and nodes (as root; some minutes)
	@$(PY) -m pytest tests/cluster -m "cluster and not slow"

verify: setup ## lint, format, types, import contracts, generated files current, layout
	@PYTHON=$(PY) ./tools/verify

protos: setup ## write the gRPC stubs again from protos/
	@$(PY) -m grpc_tools.protoc -Iprotos --python_out=python --grpc_python_out=python --pyi_out=python protos/twinpod/rpc/v1/*.proto

crds: setup ## write manifests/crds/ again from the typed resource models
	@$(PY) -m twinpod.api.crd

pins: ## write constraints/python.txt again from the environment that .venv points to
	@./tools/pins

bench: setup ## weights, switch, load and overhead, as a table and tests/bench/results/circle.json
	@$(PY) -m tests.bench.circle

bench-rollout: setup ## tokens per second of the CPU engine against torch_native
	@$(PY) -m tests.bench.rollout

bench-learning: setup ## three seeds of the samples to their end, TRL beside the first, as a table and tests/bench/results/learning.json
	@$(PY) -m tests.bench.learning

bench-scale: setup ## an iteration of 1,000 prompts x 16 answers of 32k tokens through one master, as a table and tests/bench/results/scale.json
	@$(PY) -m tests.bench.scale

bench-operator: setup ## the operator with 250 to 5,000 jobs on a real API server, as a table and tests/bench/results/operator.json
	@$(PY) -m tests.bench.operator_scale

soak: setup ## new examples for the property tests, a long run with random kills of every process, the long checks on a cluster
	@$(PY) -m pytest tests/unit --hypothesis-profile=search
	@$(PY) -m tests.bench.soak
	@TWINPOD_SOAK_ROUNDS=10 $(PY) -m pytest tests/cluster -m cluster -k "slow or most_of_the_devices" -s

cluster-up: setup ## a Kubernetes cluster with two nodes on this machine (needs root; the first time builds it)
	@$(PY) -m tests.cluster up

cluster-down: $(PY) ## stop it and delete its volumes; nothing is left but built programs and pushed images
	@$(PY) -m tests.cluster down

cluster-kubeconfig: $(PY) ## print the path of its kubeconfig (with make -s)
	@$(PY) -m tests.cluster kubeconfig

doctor: $(PY) ## what this machine lacks, and the command that mends it
	@.venv/bin/twinpod doctor

$(PY):
	@echo "this checkout is not set up; run: make setup" >&2; exit 1

clean: ## remove .venv, caches and build output of this checkout; runs/ and the shared environment stay
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
