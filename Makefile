# make run    environment, native build, default model, and an answer: make run PROMPT="..."
# make test   the same, and then the whole test suite
# make lint   formatting, style, types and layers
# make docs   the documentation, into build/docs

PYTHON ?= python3
PROMPT ?= Why is the sky blue?
export PROMPT

BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: run test lint docs build model bench-tools clean
.DELETE_ON_ERROR:

run: model
	@$(BIN)/llama-runner generate --prompt "$$PROMPT" < /dev/null

test: model
	@echo "==> Running the tests"
	@$(BIN)/python -m pytest

lint: export PATH := $(CURDIR)/$(BIN):$(PATH)
lint: .venv/installed
	@echo "==> Checking style and types"
	@ruff check
	@ruff format --check
	@cython-lint llama_runner
	@mypy
	@lint-imports --no-cache
	@codespell llama_runner llama_cpp_src docs examples tests benchmarks *.md

docs: .venv/installed
	@echo "==> Building the documentation into build/docs"
	@$(BIN)/python -c 'import furo, myst_parser, sphinx' 2>/dev/null || $(BIN)/python -m pip install -q --no-build-isolation -e '.[docs]'
	@$(BIN)/python -m sphinx -q -W --keep-going docs build/docs

model: build
	@echo "==> Default model"
	@$(BIN)/llama-runner pull smollm2-135m

# Always asked, because setup.py knows best what is out of date; nothing to do takes seconds.
build: .venv/installed
	@echo "==> Native build"
	@$(BIN)/python setup.py -q build_ext --inplace

.venv/installed: .venv/requirements setup.py
	@echo "==> Native build (the first time this takes some minutes)"
	@$(BIN)/python setup.py -q build_ext --inplace
	@echo "==> Installing llama-runner into .venv"
	@$(BIN)/python -m pip install -q --no-build-isolation -e '.[dev]'
	@touch $@

.venv/requirements: pyproject.toml .venv/created
	@echo "==> Fetching the build requirements"
	@$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' > .venv/requirements.txt
	@$(BIN)/python -m pip install -q -r .venv/requirements.txt
	@touch $@

.venv/created:
	@echo "==> Creating the environment .venv"
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) is missing: install Python 3.11 or newer"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $$($(PYTHON) --version) is too old: install Python 3.11 or newer, then make PYTHON=python3.11 ..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "error: $(PYTHON) cannot create environments: apt install python3-venv"; exit 1; }
	@$(PYTHON) -m venv .venv
	@touch $@

# llama-bench of the same llama.cpp, as its authors ship it: what benchmarks/ compares with.
bench-tools: export PATH := $(CURDIR)/$(BIN):$(PATH)
bench-tools: .venv/requirements
	@echo "==> Compiling llama-bench into build/bench/bin"
	@tree=$$(python -m llama_cpp_src.source) && \
	cmake -S llama_cpp_src -B build/bench -G Ninja --log-level=ERROR \
		-DLLAMA_RUNNER_BENCH=ON -DGGML_NATIVE=ON -DLLAMA_CPP_DIR="$$tree" && \
	cmake --build build/bench --target llama-bench

clean:
	rm -rf build dist .venv *.egg-info llama_runner/*.so llama_runner/_build_info.json
