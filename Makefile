# Everything a person does with a checkout. Each target sets up what it needs; a second run only redoes what changed.
#
#   make run        fetch the default model and answer a question       make lint     ruff, mypy
#   make test       the tests, without the slow ones                    make peers    build llama.cpp to compare with
#   make test-slow  the slow ones too                                   make bench    phial and llama.cpp side by side
#   make wheel      a wheel in dist/                                    make clean    forget environment and builds
#
# PYTHON=python3.12 chooses the interpreter, VENV=... the environment. The tests need PyTorch (any CPU build of the
# version in constraints.txt); where pip would fetch a larger one, point PIP_EXTRA_INDEX_URL at an index of CPU builds.

PYTHON ?= python3
VENV ?= .venv
PEERS ?= $(or $(PHIAL_PEERS),$(HOME)/.cache/phial-peers)
MODELS ?= $(or $(PHIAL_BENCH),$(HOME)/.cache/phial-bench)
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
QUESTION ?= How to explain Internet to a medieval knight?
# The default model is tiny: it stays on the subject at a low temperature and not for long.
SAMPLING ?= --temperature 0.2 --top-p 0.9 --seed 2 --max-tokens 128
NATIVE := CMakeLists.txt $(shell find native -name '*.cpp' -o -name '*.h')

.PHONY: run test test-slow test-neon neon-tools lint peers bench wheel clean

run: $(VENV)/.installed
	@$(BIN)/phial run $(SAMPLING) "$(QUESTION)"

test: $(VENV)/.installed $(VENV)/.tested-with
	@$(BIN)/phial pull smollm2-135m || echo "make: no test model; the tests that need it will say so and be skipped" >&2
	$(BIN)/python -m pytest -m "not slow"
	@echo "make: the NEON kernels were not run; make test-neon runs them under an emulator" >&2

test-slow: $(VENV)/.installed $(VENV)/.tested-with neon-tools
	@$(BIN)/phial pull smollm2-135m || echo "make: no test model; the tests that need it will say so and be skipped" >&2
	@$(PIP) install --quiet --no-build-isolation --editable ".[fuzz]" || echo "make: no atheris; fuzzing will be skipped" >&2
	$(BIN)/python -m pytest

lint: $(VENV)/.installed $(VENV)/.tested-with
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

wheel: $(VENV)/.build-tools
	$(PIP) wheel --no-deps --wheel-dir dist .

# The fair peer is compiled for this very machine, from its source package; about ten minutes.
peers: $(PEERS)/.installed
	@$(PEERS)/bin/python -c 'import llama_cpp; print("llama-cpp-python", llama_cpp.__version__, "in $(PEERS)")'

bench: $(VENV)/.installed $(PEERS)/.installed $(MODELS)/phi-3-mini-q4_0.gguf $(MODELS)/phi-3-mini-q4_k_m.gguf
	@$(BIN)/phial pull smollm2-135m
	$(BIN)/python bench/engine.py --peers $(PEERS) smollm2-135m \
		$(MODELS)/phi-3-mini-q4_0.gguf $(MODELS)/phi-3-mini-q4_k_m.gguf

clean:
	rm -rf $(VENV) build dist

# ---- what the targets stand on; a stamp in the environment marks each step as done ----

$(VENV)/.build-tools: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "phial needs Python 3.10 or later, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet "scikit-build-core>=0.11" "nanobind>=2.4" "cmake>=3.18" ninja typing-extensions
	@touch $@

# The compiled core is built in place; Python files are used from src/ as they are.
$(VENV)/.installed: $(VENV)/.build-tools $(NATIVE)
	$(PIP) install --quiet --no-build-isolation --editable .
	@touch $@

$(VENV)/.tested-with: pyproject.toml constraints.txt | $(VENV)/.installed
	$(PIP) install --quiet --no-build-isolation --constraint constraints.txt --editable ".[dev]"
	@touch $@

$(PEERS)/.installed:
	$(PYTHON) -m venv $(PEERS)
	CMAKE_ARGS="-DGGML_NATIVE=ON" $(PEERS)/bin/python -m pip --disable-pip-version-check install \
		--no-binary llama-cpp-python llama-cpp-python
	@touch $@

$(MODELS)/phi-3-mini-%.gguf: | $(VENV)/.installed
	@mkdir -p $(MODELS)
	$(BIN)/python bench/make_random_gguf.py $* $@

# ---- the ARM kernels, cross-compiled and run under an emulator ----

test-neon: $(VENV)/.installed $(VENV)/.tested-with neon-tools
	$(BIN)/python -m pytest -ra tests/native/test_neon.py

neon-tools:
	@{ command -v aarch64-linux-gnu-g++ && command -v qemu-aarch64; } >/dev/null || \
		{ test "$$(id -u)" = 0 && test -f /etc/debian_version && apt-get update -qq && \
		  apt-get install -y -qq g++-aarch64-linux-gnu qemu-user >/dev/null; } || \
		echo "make: NEON WILL NOT BE TESTED: install g++-aarch64-linux-gnu and qemu-user (Debian) to have it run" >&2
