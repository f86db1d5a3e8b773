# One command each, from a fresh clone with Python alone: `make demo`, `make test`. `make lint` checks form and types.
PYTHON ?= python3
BIN := .venv/bin
ifeq ($(OS),Windows_NT)
BIN := .venv/Scripts
endif

.PHONY: demo test lint mypy bench clean

demo: .venv/runtime.stamp ## edit a built-in label map and a built-in picture; says where the results lie
	$(BIN)/sparsegen demo --output demo.png
	$(BIN)/sparsegen demo --model landscape-ddpm --output demo-ddpm.png

test: .venv/test.stamp ## everything that is claimed, checked
	$(BIN)/python -m pytest

lint: .venv/lint.stamp ## ruff (format, lint) and mypy, as pre-commit runs them
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pre-commit run --all-files --show-diff-on-failure

# Types are checked on the package as it is installed: in the checkout two of its three folders have other names.
mypy: .venv/lint.stamp
	rm -rf build && mkdir -p build/typed
	$(BIN)/python -m pip install --quiet --no-deps --target build/typed/site .
	cd build/typed && MYPYPATH=site "$(CURDIR)/$(BIN)/python" -m mypy --config-file "$(CURDIR)/pyproject.toml" -p sparsegen

bench: .venv/bench.stamp ## layers, dense runs and edits against PyTorch, ncnn and onnxruntime: tables and JSON lines
	$(BIN)/python -m bench.layers
	$(BIN)/python -m bench.gaugan
	$(BIN)/python -m bench.startup
	$(BIN)/python -m bench.landscape
	$(BIN)/python -m bench.diffusion
	$(BIN)/python -m bench.quality

clean:
	rm -rf .venv build dist *.egg-info

.venv/bin.stamp:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	touch $@

.venv/runtime.stamp: .venv/bin.stamp pyproject.toml
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/test.stamp: .venv/bin.stamp pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	touch $@

.venv/bench.stamp: .venv/bin.stamp pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[bench]"
	touch $@

.venv/lint.stamp: .venv/bin.stamp pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[lint]"
	touch $@
