# make run    do the main job; results in out/
# make test   what CI runs
# The README gives the plain commands for machines without make.

PYTHON ?= python3
VENV := .venv
ifeq ($(OS),Windows_NT)
BIN := $(VENV)/Scripts
PYTHON := python
else
BIN := $(VENV)/bin
endif
STAMP := $(VENV)/installed

.PHONY: run test notebooks backflip student lab setup

run: setup
	$(BIN)/python tools/run_main.py

test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tools/check_notebooks.py
	$(BIN)/python -m pytest -n 2 --dist loadscope

notebooks: setup  # execute all of them in place
	$(BIN)/python tools/run_notebooks.py

student: setup  # copies without solutions, in build/student/
	$(BIN)/python tools/make_student.py

backflip: setup  # a back-flip from comparisons; goes on where a killed run stopped
	$(BIN)/python -m rlhf_mini.control

lab: setup
	$(BIN)/jupyter lab notebooks

setup: $(STAMP)

$(STAMP): requirements.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'rlhf_mini needs Python 3.11 or newer: make PYTHON=python3.12')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -r requirements.txt
	$(BIN)/python -c "import pathlib; pathlib.Path('$(STAMP)').touch()"
