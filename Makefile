# Two commands do everything on a fresh machine with Python 3.11 or newer:
#   make quickstart   a small Kosmos-2 learns, is measured, drawn and exported (about 17 minutes on two cores)
#   make test         all tests
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
# What the constraints were recorded with; other Pythons resolve freely.
CONSTRAINTS := $(shell $(PYTHON) -c 'import sys; print("-c constraints.txt" if sys.version_info[:2] == (3, 11) else "")')

.PHONY: quickstart test lint install clean

quickstart: install
	$(RUN) tools/quickstart.py --workdir runs/quickstart

test: install lint
	$(RUN) tools/get_chromium.py $(VENV)/chromium
	$(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: install
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

install: $(VENV)/.installed

$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS) -e '.[train,prepare,grit,torch,compile,coco,gcs,serve,demo,test]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
