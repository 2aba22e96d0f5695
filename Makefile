# Two commands set everything up: `make demo` and `make test`. Both need Python 3.11+ and packages.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
TESTED := $(VENV)/.ready-to-test
INSTALL = $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt
N      ?= 2000
SEED   ?= 1

.PHONY: help demo test test-all mutants lint docs test-cpus test-serve plugins fuzz fuzz-files clean

help:
	@echo "make demo             export, verify and time a trained model on real images"
	@echo "make test             lint, type-check and run the tests: each thing alone"
	@echo "make test-all         lint, type-check and run all tests: combinations as well"
	@echo "make test-cpus        test under other instruction sets: SSE, AVX2, AVX-512, ARM64"
	@echo "make mutants          plant bugs of one line; the tests must notice each"
	@echo "make test-serve       install a Triton server and Ray, and test with them"
	@echo "make plugins          build the native plugins into crelu_deploy/lib"
	@echo "make lint             lint and type-check only"
	@echo "make docs             build the documentation into site/"
	@echo "make fuzz N=10000     random networks: recognised, lowered, and run"
	@echo "make fuzz-files N=2000  damaged files: each ends in success or in one line"

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "error: $(PYTHON) is older than 3.11; run: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -e '.[torch,ort]'
	$(INSTALL) -e '.[openvino]' \
	  || echo "no OpenVINO for this machine: the demo and the tests say what is not here" >&2
	@touch $@

# TensorRT-RTX and Triton are for x86-64 Linux only; without them their tests say that they skip.
$(TESTED): $(READY)
	$(INSTALL) -e '.[torch,ort,analysis,locate,docs,dev]'
	$(INSTALL) -e '.[tensorrt-rtx,fused]' \
	  || echo "no TensorRT-RTX or no Triton: their tests are skipped" >&2
	@touch $@

demo: $(READY)
	$(BIN)/python scripts/demo.py examples/digits_crelu.pt examples/digits_samples.npz out/digits

lint: $(TESTED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/pytest -n 2 --dist loadfile

test-all: lint
	$(BIN)/pytest -n 2 --dist loadfile -m ""

mutants: $(TESTED)
	$(BIN)/python scripts/mutants.py

docs: $(READY)
	$(INSTALL) -e '.[docs]'
	$(BIN)/mkdocs build --strict

fuzz: $(TESTED)
	FUZZ_EXAMPLES=$(N) $(BIN)/pytest tests/test_fuzz.py --hypothesis-seed=$(SEED) --timeout 0

fuzz-files: $(TESTED)
	$(BIN)/python scripts/fuzz_files.py $(N) --seed $(SEED)

# Instructions are hidden from CPUID, or a processor is emulated; what cannot be had says why.
test-cpus: $(TESTED)
	$(BIN)/python scripts/cpus/run.py

# A Triton server in an environment of its own, and a cluster of two Ray nodes on this machine.
test-serve: $(TESTED)
	$(INSTALL) -e '.[serve,ray]' kubernetes kubernetes-validate pyyaml six
	$(INSTALL) --no-deps kserve
	$(BIN)/python -c "from crelu_deploy.serving.environment import default_folder, provide; provide(default_folder(), print)"
	$(BIN)/pytest tests/test_triton_repository.py tests/test_triton_server.py tests/test_scoring.py \
	  tests/test_scoring_shards.py tests/test_scoring_cluster.py tests/test_preprocessing.py \
	  tests/test_kubernetes.py

# --no-deps: these packages would bring a CUDA build of PyTorch or the whole of TensorRT.
plugins: $(TESTED)
	PIP=$(BIN)/pip plugins/fetch_sdk.sh
	$(INSTALL) --no-deps \
	  tensorrt-dispatch-cu13-libs tensorrt-dispatch-cu13-bindings \
	  || echo "no TensorRT registry: its tests are skipped" >&2
	cd plugins && cmake --preset default && cmake --build --preset default

clean:
	rm -rf $(VENV) crelu_deploy/lib build dist out site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
