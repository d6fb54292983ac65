# `make` alone prints what there is. Nothing here needs root, Docker or conda.
# Paths are relative throughout, so a checkout may lie in a folder with spaces in its name.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

PROFILE ?= standard## smoke (3 minutes), standard (11) or full
PYTHON ?=## the Python 3.11, 3.12 or 3.13 to build the environment with
TORCH_INDEX ?=## an index's address or a folder of wheels with PyTorch's CPU build: a much smaller download
SUBMISSIONS ?=## the folder with a folder or zip for each student, for `make grade`
OUT ?=## where `make release`, `make grade` and `make drills` write to
SYSTEM ?=## bookworm or trixie, for `make try-system`
STEPS ?=## some steps of `make test` only, for example STEPS="ruff unit"

VENV_PYTHON := .venv/bin/python
# The stamp's name holds the folder: a checkout that was copied or moved along with its .venv, whose
# scripts point elsewhere, has no stamp and gets a new environment.
STAMP := .venv/complete-$(shell pwd -P | cksum | cut -d ' ' -f 1)

.PHONY: help env data server lab test test-unit lint format notebooks doctor jupyter release grade drills bench-train bench-serve bench-grade try-system clean clean-all

help: ## Show this list
	@echo "The two commands that matter:  make lab   and   make test"
	@echo
	@awk -F ':[^#]*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "Settings, as in 'make lab PROFILE=smoke':"
	@awk -F ' *[?]= *|## ' '/^[A-Z_]+ [?]=.*## / { printf "  %-19s %s%s\n", $$1, $$3, ($$2 == "" ? "" : " [" $$2 "]") }' Makefile

env: $(STAMP) ## Build the environment in .venv (once; later runs only check)
	@echo "environment: .venv, $$($(VENV_PYTHON) --version)"

$(STAMP): pyproject.toml constraints.txt tools/make_env.sh
	@sh tools/make_env.sh "$(PYTHON)" "$(TORCH_INDEX)"
	@touch $@

data: env ## Fetch CIFAR-10 into the cache and verify it
	@$(VENV_PYTHON) -m labkit data

server: env ## Fetch the Triton server into the cache; build its native backends where that is possible
	@$(VENV_PYTHON) -m labkit triton build --if-possible
	@$(VENV_PYTHON) -m labkit triton fetch

lab: env data server ## Run the whole lab headless and write the report
	@$(VENV_PYTHON) -m labkit run --profile $(PROFILE)

jupyter: env server ## Open JupyterLab on the notebooks
	@$(VENV_PYTHON) -m labkit lab

doctor: env ## Say what this machine has and what is missing
	@$(VENV_PYTHON) -m labkit doctor

test: env ## Run every check: ruff, mypy, unit, server, notebooks, grading; gateway, drills, browser
	@$(VENV_PYTHON) tools/run_steps.py $(STEPS)

test-unit: env ## Run the unit tests only (no network, no server)
	@$(VENV_PYTHON) tools/run_steps.py unit

lint: env ## Check style, format and types
	@$(VENV_PYTHON) tools/run_steps.py ruff format mypy mypy-tests

format: env ## Repair style and format where a program can
	@$(VENV_PYTHON) -m ruff check --fix .
	@$(VENV_PYTHON) -m ruff format .

notebooks: env data server ## Execute the committed notebooks anew, outputs included
	@$(VENV_PYTHON) tools/execute_notebooks.py

release: env ## Write the student edition into OUT
	@$(VENV_PYTHON) -m labkit release "$(or $(OUT),runs/release)"

grade: env data server ## Grade SUBMISSIONS in a sandbox, into OUT
	@if [ -z "$(SUBMISSIONS)" ]; then echo "say which class: make grade SUBMISSIONS=FOLDER [OUT=FOLDER]" >&2; exit 2; fi
	@$(VENV_PYTHON) -m labkit grade "$(SUBMISSIONS)" --out "$(or $(OUT),runs/grades)"

drills: env server ## Break servers on purpose: kill, overload, corrupt, update; a page with what came of it
	@$(VENV_PYTHON) -m labkit drills --out "$(or $(OUT),runs/drills)"

bench-train: env data ## Measure training: time, accuracy, images/s, share of peak
	@$(VENV_PYTHON) benchmarks/train.py --train standard

bench-serve: env data server ## Measure serving against in-process ONNX Runtime
	@$(VENV_PYTHON) benchmarks/serve.py

bench-grade: env data server ## Measure grading: submissions per hour, overhead over the notebooks
	@$(VENV_PYTHON) benchmarks/grade.py

try-system: ## Try the last commit on a bare Debian in a folder, SYSTEM=bookworm or trixie (as root)
	@sh tools/try_system.sh "$(SYSTEM)" --steps "$(STEPS)"

clean: ## Remove caches; runs, models, data and environment stay
	@find . -name .venv -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints \) -type d -print | \
	    while IFS= read -r folder; do rm -rf "$$folder"; done
	@rm -rf .pytest_cache .mypy_cache .ruff_cache
	@echo "clean: caches removed"

clean-all: clean ## Remove also .venv, runs/ and the model files in model_repository/
	@rm -rf .venv runs labkit.egg-info
	@rm -rf model_repository/*/[0-9]*
	@echo "clean: environment, runs and model files removed; CIFAR-10 stays in the cache"
