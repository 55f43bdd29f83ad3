# `make` lists the targets. Needed: make, and Python 3.10 to 3.13 as $(PYTHON). Everything made lies under .venv, build and dist;
# only Kafka, which demo-live, soak and the live tests run on, is kept for all checkouts (deploy/local/README.md).

PYTHON ?= python3
ARGS   ?=
SEEDS  ?= 5
export PIP_DISABLE_PIP_VERSION_CHECK = 1

DEV    := .venv/bin
BUILD  := build/venv-build/bin
# One test environment per version of Python, so that PYTHON=... never meets another one's.
TAG    := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
TESTED := build/venv-test-$(TAG)/bin

# Folders too: their time changes when a file is added or removed, which a strict editable install does not see by itself.
FOLDERS := $(shell find schemas transforms pipeline -type d -not -name __pycache__)
SOURCES := $(shell find schemas transforms pipeline -type f -not -name '*.pyc') setup.py MANIFEST.in README.md LICENSE

.DEFAULT_GOAL := help
.PHONY: help demo demo-live test faults soak check bench docs dist clean
.DELETE_ON_ERROR:

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s  %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  PYTHON=python3.12   which interpreter the environments are made with"
	@echo "  ARGS='-k noise -x'  further arguments, for pytest under test, for bench/run.py under bench"
	@echo "  SEEDS=20            how often make faults goes through all of them"
	@echo "  EVENTVEIL_DATA=...  folder of real records for the tests that read them; they are skipped without it"

demo: build/stamps/core  ## shipping orders become anonymous events, shown before and after
	@PATH="$(CURDIR)/$(DEV):$$PATH" examples/shipping_order/demo

demo-live: build/stamps/live  ## a real Kafka, orders arriving for 20 s, windows of anonymous events as they appear; needs Java 17 and Maven
	@PATH="$(CURDIR)/$(DEV):$$PATH" examples/shipping_order/demo-live

test: build/stamps/tested-$(TAG)  ## the whole test suite, in an environment of its own, against the wheel built from the sdist
	@echo "== testing $$($(TESTED)/python -c 'import eventveil.schemas as s; print(*s.__path__)')"
	EVENTVEIL_TESTS_INSTALLED=1 $(TESTED)/pytest -p no:cacheprovider $(ARGS)

faults: build/stamps/tested-$(TAG)  ## kill, stop and restart what takes part in a live job, with five seeds
	EVENTVEIL_TESTS_INSTALLED=1 EVENTVEIL_SEEDS=$(SEEDS) $(TESTED)/pytest -p no:cacheprovider -m "faults or thorough" $(ARGS)

soak: build/stamps/dev  ## a live job under load for 30 minutes: does anything grow, is anything lost?
	$(DEV)/python bench/soak.py $(ARGS)

check: build/stamps/dev  ## lint, format, types, and whether the generated documents are up to date
	$(DEV)/ruff check .
	$(DEV)/ruff format --check .
	$(DEV)/mypy -p eventveil.schemas -p eventveil.transforms -p eventveil.pipeline
	$(DEV)/python docs/generate.py --check

docs: build/stamps/dev  ## write the generated references under docs/
	$(DEV)/python docs/generate.py

bench: build/stamps/dev  ## a million orders through the job, from a file and live, beside a plain loop: events/s, CPU s, memory
	$(DEV)/python bench/run.py $(ARGS)

dist: build/stamps/dist  ## sdist, and the wheel built from it, under dist/
	@ls -l dist

clean:  ## remove everything that was made
	deploy/local/down
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find schemas transforms pipeline tests bench docs examples -name __pycache__ -type d -prune -exec rm -rf {} +

# --- environments; each stamp is younger than what it was made from

define new_venv
@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v < (3, 14) else "Python 3.10 to 3.13 is needed, this is %d.%d: try make PYTHON=python3.12" % v)'
@echo "== new environment $(1)"
@rm -rf $(1)
$(PYTHON) -m venv $(1)
endef

build/stamps/venv-$(TAG):
	$(call new_venv,.venv)
	@rm -f build/stamps/venv-3* build/stamps/core build/stamps/live build/stamps/dev
	@mkdir -p $(@D) && touch $@

build/stamps/core: build/stamps/venv-$(TAG) setup.py pyproject.toml $(FOLDERS)
	$(DEV)/pip install -q -e . --config-settings editable_mode=strict
	@touch $@

build/stamps/live: build/stamps/venv-$(TAG) setup.py pyproject.toml $(FOLDERS)
	$(DEV)/pip install -q -e '.[kafka]' --config-settings editable_mode=strict
	@touch build/stamps/core $@

build/stamps/dev: build/stamps/venv-$(TAG) setup.py pyproject.toml $(FOLDERS)
	$(DEV)/pip install -q -e '.[dev]' --config-settings editable_mode=strict
	@touch build/stamps/core build/stamps/live $@

build/stamps/venv-build:
	$(call new_venv,build/venv-build)
	$(BUILD)/pip install -q 'build>=1.3' 'setuptools>=70.1'
	@mkdir -p $(@D) && touch $@

build/stamps/dist: build/stamps/venv-build $(SOURCES) $(FOLDERS) pyproject.toml
	@echo "== sdist, and the wheel from the sdist"
	@rm -rf dist eventveil.egg-info
	$(BUILD)/python -m build --no-isolation --outdir dist . >build/dist.log 2>&1 || { cat build/dist.log; exit 1; }
	@touch $@

# Other dependencies, another environment; other code alone is swapped as a whole, down to the last file of the old wheel.
build/stamps/test-$(TAG): setup.py
	$(call new_venv,build/venv-test-$(TAG))
	@mkdir -p $(@D) && touch $@

build/stamps/tested-$(TAG): build/stamps/test-$(TAG) build/stamps/dist
	@echo "== install the wheel with what the tests need"
	$(TESTED)/pip install -q "$$(ls dist/*.whl)[test]"
	$(TESTED)/pip install -q --force-reinstall --no-deps dist/*.whl
	@touch $@
