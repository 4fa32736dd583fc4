# Everything sets itself up: the virtual environment is made again only when its inputs change.
VENV := .venv
RUN := $(VENV)/bin
PYTHON ?= python3

.PHONY: search test check bench bench-transfer format

search: $(VENV)/installed
	$(RUN)/metasearch launch digits --space quick --trials 24

test: $(VENV)/installed
	$(RUN)/pytest

check: $(VENV)/installed
	$(RUN)/ruff format --check .
	$(RUN)/ruff check .
	$(RUN)/mypy
	$(RUN)/pytest -m "not slow"

bench: $(VENV)/installed
	$(RUN)/python -m tests.bench

bench-transfer: $(VENV)/installed
	$(RUN)/python -m tests.bench transfer

format: $(VENV)/installed
	$(RUN)/ruff format .
	$(RUN)/ruff check --fix .

$(VENV)/installed: pyproject.toml constraints.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@
