# The commands of the house. Each makes or reuses an environment first: see tools/environment.sh.
#   make test                  everything this machine can run, but what is marked slow
#   make test SLOW=1           with what is marked slow
#   make TORCH=torch==2.12.0   the torch to install where none is found
#   make test-torch TORCH=2.11.0   what depends on torch's own inside, under exactly that version
#   make gpu [STAGE=kernels] [OUT=DIR]   on a machine with a GPU: build, test, sanitize, measure, each
#                              in its share of 540 seconds (ARGS="--budget SECONDS"); with the python
#                              and torch that are there, downloading nothing; again to go on. Where
#                              there is no .git, BLL_COMMIT names the commit
#   make gpu STAGE=table1 ARGS="--data-dir DIR"   the published accuracy table; again to go on
#   make gpu-compare [BASELINE=FILE] [OUT=DIR]   the run in OUT against a committed one; what is more
#                              than 10 % slower is measured again, and fails if it is so twice
#   make wheels                wheels in dist/, by cibuildwheel (needs docker)
#   make wheel-audit [WHEELS="FILE ..."]         their platform tags, and what they ask of Python and torch

TORCH ?= torch==2.13.0
SLOW ?=
ARGS ?=
# One process per core; tests that share a build folder stay together.
WORKERS ?= -n auto --maxprocesses 8 --dist loadgroup
PYTHON ?= python3
STAGE ?=
OUT ?= runs/gpu
BASELINE ?= bench/results/gpu/baseline.json
CIBUILDWHEEL ?= cibuildwheel>=2.21
WHEELS ?= dist/*.whl

.DEFAULT_GOAL := help
.PHONY: help demo test test-long test-torch lint bench gpu gpu-compare wheels wheel-audit clean

help:
	@sed -n 's/^#   //p' Makefile
	@echo "targets: demo test test-long test-torch lint bench gpu gpu-compare wheels wheel-audit clean"

demo:
	@python=$$(sh tools/environment.sh train "$(TORCH)") && \
	"$$python" -m bll train --dataset digits --model mlp --blocks 4 --rule bll --epochs 20 \
	    --batch-size 64 --seed 0 --out runs/demo --overwrite && \
	echo "pictures: runs/demo/curves.png   numbers: runs/demo/summary.json"

test:
	@python=$$(sh tools/environment.sh test "$(TORCH)") && \
	sh tools/core_tests.sh "$$python" && \
	BLL_REQUIRE="$$(sh tools/required_backends.sh)" \
	    "$$python" -m pytest $(WORKERS) --durations=20 -m "$(if $(SLOW),,not slow and )not long" $(ARGS)

test-long:
	@mkdir -p runs
	@python=$$(sh tools/environment.sh test "$(TORCH)") && \
	{ date -u; git rev-parse HEAD; \
	  HYPOTHESIS_PROFILE=long BLL_REQUIRE="$$(sh tools/required_backends.sh)" \
	    "$$python" -m pytest $(WORKERS) --timeout 7200 $(ARGS) && echo "exit 0" || echo "failed"; } 2>&1 | \
	tee runs/test-long.log
	@tail -n 1 runs/test-long.log | grep -qx "exit 0"

# Autograd, op checks and compiled gradients under exactly TORCH: what a torch may change under us.
# In an environment of its own, so that another torch is neither replaced nor in the way; its tests
# are the CPU's, so no CUDA kernel is compiled for them.
test-torch: export BLL_BUILD ?= cpu
test-torch: VERSION = $(patsubst torch==%,%,$(TORCH))
test-torch: PLACE = $(CURDIR)/build/torch-$(VERSION)
test-torch:
	@[ -x "$(PLACE)/bin/python" ] || $(PYTHON) -m venv "$(PLACE)"
	@python=$$(VIRTUAL_ENV="$(PLACE)" sh tools/environment.sh test "torch==$(VERSION)") && \
	"$$python" -c 'import sys, torch; found = torch.__version__.split("+")[0]; \
	    sys.exit(None if found == "$(VERSION)" else f"expected torch $(VERSION), found {found}")' && \
	BLL_REQUIRE="$$(sh tools/required_backends.sh)" \
	    "$$python" -m pytest $(WORKERS) -m "not long" $(ARGS) tests/test_autograd.py \
	    tests/test_ops_registration.py tests/test_compiled_gradients.py

lint:
	@python=$$(sh tools/environment.sh dev "$(TORCH)") && sh tools/lint.sh "$$python"

bench:
	@python=$$(sh tools/environment.sh test "$(TORCH)") && "$$python" -m pytest bench -k cpu $(ARGS)

gpu:
	PYTHONPATH=.:python $(PYTHON) -m bench.gpu --out $(OUT) $(if $(STAGE),--stage $(STAGE)) $(ARGS)

gpu-compare:
	PYTHONPATH=.:python PYTHON=$(PYTHON) sh tools/gpu_compare.sh $(BASELINE) $(OUT)

wheels:
	$(PYTHON) -m pip install "$(CIBUILDWHEEL)"
	$(PYTHON) -m cibuildwheel --platform linux --output-dir dist

wheel-audit:
	$(PYTHON) tools/audit_wheel.py $(WHEELS)

clean:
	rm -rf build dist runs/demo .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +
	rm -f bll_kernels/_C*.so bll_kernels/_core*.so bll_kernels/_build_info.json
