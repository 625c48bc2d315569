# Two commands do everything on a fresh machine: `make reproduce` and `make test`.
PYTHON ?= python3
VENV ?= .venv
PROFILE ?= smoke
BIN = $(VENV)/bin
# 17 trains the first time, which `make reproduce` does. The longest come first: no process waits for them at the end.
LONGEST = $(wildcard notebooks/15_*.ipynb notebooks/01_*.ipynb)
OTHERS = $(filter-out $(LONGEST), $(shell grep -l '"output_type"' notebooks/*.ipynb | grep -v 17_))
# One OpenMP thread a process: two threads on busy cores were ten times slower.
export OMP_NUM_THREADS ?= 1
export MKL_NUM_THREADS ?= 1

.PHONY: install lock reproduce test lint clean

# make install [LATEST=1]: the versions of constraints.txt, or the newest ones. Every target here takes LATEST.
STAMP = $(VENV)/.installed$(if $(LATEST),-latest)
install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	rm -f $(VENV)/.installed*
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/python -m panolib.lab.packages install $(if $(LATEST),--latest)
	touch $@

# make lock [LATEST=1]: write the installed versions into constraints.txt and environment.yml.
lock: install
	$(BIN)/python -m panolib.lab.packages lock
	rm -f $(VENV)/.installed*
	touch $(VENV)/.installed

# make reproduce [PROFILE=smoke|cpu|gpu|paper] [RETRAIN=1] [NOTEBOOK=07]
reproduce: install
	$(BIN)/python -m panolib reproduce --profile $(PROFILE) $(if $(RETRAIN),--retrain) $(if $(NOTEBOOK),--notebook $(NOTEBOOK))

# make test [SLOW=1]: with the few tests that take about a minute each; CI runs them.
# The executed notebooks replay the committed record; one that would have to train fails instead.
# Two processes of pytest; each notebook stays in one of them.
test: install
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q -n 2 --dist worksteal $(if $(SLOW),,-m "not slow") tests
	PANOLIB_TRAIN=0 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --nbval --nbval-current-env --nbval-sanitize-with tests/notebooks/sanitize.cfg $(LONGEST) $(OTHERS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/lint-imports

clean:
	rm -rf cache results/smoke figures/smoke
