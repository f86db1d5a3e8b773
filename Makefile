# One command each, from a fresh clone with Python alone. `make help` lists them.
PYTHON ?= python3
BIN := .venv/bin
ifeq ($(OS),Windows_NT)
BIN := .venv/Scripts
endif

# areas of tests/ that `make quick` covers: no checkpoints, kernels, command line and pipelines
QUICK := house tiling diffusion engine models editing images

.PHONY: help demo quick test test-gpu lint mypy bench bench-primitives docs clean

help: ## list the targets
	@awk -F ':.*## ' -v areas='$(QUICK)' '/^[a-z-]+:.*## / { sub("AREAS", areas, $$2); printf "make %-16s  %s\n", $$1, $$2 }' Makefile

demo: .venv/runtime.stamp ## show the built-in models: labels, images and texts; print where the results are
	$(BIN)/sparsegen demo --output demo.png
	$(BIN)/sparsegen demo --model landscape-ddpm --output demo-ddpm.png
	$(BIN)/sparsegen demo --model landscape-sd --output demo-sd.png

quick: .venv/test.stamp ## about a minute of tests (AREAS), numba backend only, none that need PyTorch or are marked slow
	$(BIN)/python -m pytest -q -m "not torch and not slow" -k "not reference" $(QUICK:%=tests/%)

test: .venv/test.stamp ## all tests (half an hour on two cores; installs PyTorch to compare with)
	$(BIN)/python -m pytest

test-gpu: .venv/test.stamp ## on a machine with an NVIDIA card: the suites on it, and compute-sanitizer
	$(BIN)/python -m tests.cuda.on_card

lint: .venv/lint.stamp ## ruff (format, lint) and mypy, as pre-commit runs them
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pre-commit run --all-files --show-diff-on-failure

# The installed package is checked: in the checkout two of its three folders have other names.
mypy: .venv/lint.stamp ## mypy alone, on the package as it is installed
	rm -rf build && mkdir -p build/typed
	$(BIN)/python -m pip install --quiet --no-deps --target build/typed/site .
	cd build/typed && MYPYPATH=site "$(CURDIR)/$(BIN)/python" -m mypy --config-file "$(CURDIR)/pyproject.toml" -p sparsegen

bench: .venv/bench.stamp ## layers, dense runs and edits against PyTorch, ncnn and ONNX Runtime: JSON lines, docs/benchmarks.md
	$(BIN)/python -m bench.layers
	$(BIN)/python -m bench.gaugan
	$(BIN)/python -m bench.gan_compression
	$(BIN)/python -m bench.startup
	$(BIN)/python -m bench.landscape
	$(BIN)/python -m bench.diffusion
	$(BIN)/python -m bench.stable_diffusion
	$(BIN)/python -m bench.quality
	$(BIN)/python -m bench.switches
	$(BIN)/python -m bench.threads
	$(BIN)/python -m bench.stored_weights
	$(BIN)/python -m bench.report

bench-primitives: .venv/bench.stamp ## each primitive of each backend: checked, timed, saved, beside the last run here
	$(BIN)/python -m bench.primitives

# mkdocstrings reads the package as it is installed, as mypy does
docs: .venv/docs.stamp ## the documentation as a site: build/site/index.html, which needs no network
	rm -rf build/docs build/site && mkdir -p build/docs
	$(BIN)/python -m pip install --quiet --no-deps --target build/docs .
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet
	@echo "open build/site/index.html"

clean: ## remove the virtual environment and what was built
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

.venv/docs.stamp: .venv/bin.stamp pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	touch $@

.venv/lint.stamp: .venv/bin.stamp pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[lint]"
	touch $@
