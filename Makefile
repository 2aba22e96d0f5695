# Two commands set everything up: `make demo` and `make test`. Both need Python 3.11+ and packages.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
TESTED := $(VENV)/.ready-to-test
INSTALL = $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt
N      ?= 2000
SEED   ?= 1

.PHONY: help demo test lint plugins fuzz fuzz-files clean

help:
	@echo "make demo             export, verify and time a trained model on real images"
	@echo "make test             lint, type-check and run all tests"
	@echo "make plugins          build the native plugins into crelu_deploy/lib"
	@echo "make lint             lint and type-check only"
	@echo "make fuzz N=10000     random networks: recognised, lowered, and run"
	@echo "make fuzz-files N=2000  damaged files: each ends in success or in one line"

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "error: $(PYTHON) is older than 3.11; run: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -e '.[torch,ort,openvino]'
	@touch $@

# TensorRT-RTX and Triton are for x86-64 Linux only; without them their tests say that they skip.
$(TESTED): $(READY)
	$(INSTALL) -e '.[torch,ort,openvino,analysis,locate,dev]'
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

fuzz: $(TESTED)
	FUZZ_EXAMPLES=$(N) $(BIN)/pytest tests/test_fuzz.py --hypothesis-seed=$(SEED) --timeout 0

fuzz-files: $(TESTED)
	$(BIN)/python scripts/fuzz_files.py $(N) --seed $(SEED)

# --no-deps: these packages would bring a CUDA build of PyTorch or the whole of TensorRT.
plugins: $(TESTED)
	PIP=$(BIN)/pip plugins/fetch_sdk.sh
	$(INSTALL) --no-deps \
	  tensorrt-dispatch-cu13-libs tensorrt-dispatch-cu13-bindings \
	  || echo "no TensorRT registry: its tests are skipped" >&2
	cd plugins && cmake --preset default && cmake --build --preset default

clean:
	rm -rf $(VENV) crelu_deploy/lib build dist out *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
