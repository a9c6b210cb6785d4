# Two commands set everything up on a fresh machine: `make demo` and `make test`.
# PYTHON chooses the interpreter (3.11 to 3.13), RUN the directory of the demo's run, PHOTOS a folder of JPEG files for
# `make bench` (left out: made up on the spot).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN ?= runs/demo
SEED ?= 0
# From PyPI plain torch is the CUDA build, which runs on a CPU too. TORCH may name another, smaller build.
TORCH ?= torch torchvision
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test check docs format bench stress browser nginx clean

demo: $(VENV)/ready
	$(BIN)/python benchmarks/cifar10_mirror.py --if-needed
	$(BIN)/distilhash demo --output $(RUN) --seed $(SEED) $(if $(wildcard $(RUN)/config.json),--resume)

test: $(VENV)/ready-dev browser nginx
	$(BIN)/python benchmarks/cifar10_mirror.py --if-needed
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

check: export NO_MKDOCS_2_WARNING := 1
check: $(VENV)/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mkdocs build --strict --quiet --site-dir build/check

# A site in build/site; neither making nor reading it needs a network.
docs: export NO_MKDOCS_2_WARNING := 1
docs: $(VENV)/ready-dev
	$(BIN)/mkdocs build

format: $(VENV)/ready-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/ready-dev
	$(BIN)/python benchmarks/bench.py $(if $(PHOTOS),--photos $(PHOTOS))

stress: $(VENV)/ready-dev
	$(BIN)/python benchmarks/kill_resume.py --kills 20
	$(BIN)/python benchmarks/kill_index.py --kills 20
	$(BIN)/python benchmarks/kill_export.py --kills 10
	$(BIN)/python benchmarks/kill_reproduce.py --kills 10
	$(BIN)/python benchmarks/hostile.py

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/ready: pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet --editable '.[train]'
	touch $@

$(VENV)/ready-dev: $(VENV)/ready
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

# The page is tested in a real browser: the system's, or one that is brought here.
browser: $(VENV)/ready-dev
	@for name in chromium chromium-browser google-chrome; do command -v $$name >/dev/null && exit 0; done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; \
	then apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium; \
	else $(BIN)/playwright install chromium; fi

# The service is tested behind a real nginx with TLS.
nginx:
	@if ! { PATH="$$PATH:/usr/sbin"; command -v nginx && command -v openssl; } >/dev/null; \
	then apt-get update -qq && apt-get install -qq -y --no-install-recommends nginx-light openssl; fi

clean:
	rm -rf $(VENV) runs
