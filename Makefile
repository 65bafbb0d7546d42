# Two commands from nothing: `make demo` and `make test`. Relative paths only, so that the checkout may lie in a
# folder with a space in its name.

VENV_PYTHON := .venv/bin/python
STAMP := .venv/.installed
# Two workers: most tests wait for ffmpeg or use one thread; an idle worker takes tests from the other.
PYTEST_ARGS ?= -n 2 --dist worksteal

.PHONY: demo test lint format clean-venv help

help:
	@echo 'make demo   make clips, train a small model on them and measure it: a few minutes on 2 cores'
	@echo 'make test   run the tests'
	@echo 'make lint   ruff and mypy'
	@echo 'Each first creates .venv/ with the versions of constraints.txt. PYTHON=/path/to/python3 chooses the interpreter.'

demo: $(STAMP)
	$(VENV_PYTHON) -m kdctool demo $(DEMO_ARGS)

test: $(STAMP)
	OMP_NUM_THREADS=1 $(VENV_PYTHON) -m pytest $(PYTEST_ARGS)

lint: $(STAMP)
	$(VENV_PYTHON) -m ruff check .
	$(VENV_PYTHON) -m ruff format --check .
	$(VENV_PYTHON) -m mypy

format: $(STAMP)
	$(VENV_PYTHON) -m ruff check --fix .
	$(VENV_PYTHON) -m ruff format .

clean-venv:
	rm -rf .venv

# The stamp holds the folder it was made in: an environment that was moved or copied is set up again.
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(shell pwd -P))
.PHONY: $(STAMP)
endif

$(STAMP): pyproject.toml constraints.txt
	@if $(VENV_PYTHON) -m pip --version >/dev/null 2>&1; then exit 0; fi; \
	usable='import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))'; \
	for python in $(if $(PYTHON),"$(PYTHON)",python3.12 python3.11 python3.13 python3); do \
	    if "$$python" -c "$$usable" >/dev/null 2>&1; then \
	        echo "creating .venv with $$("$$python" --version)" >&2; exec "$$python" -m venv --clear .venv; \
	    fi; \
	done; \
	for python in $(if $(PYTHON),"$(PYTHON)",python3.12 python3.11 python3.13 python3); do \
	    if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	        echo "$$("$$python" --version) is there, but not its venv module: apt install python3-venv (as root), or make PYTHON=/path/to/another/python3" >&2; exit 4; \
	    fi; \
	done; \
	echo 'no Python of 3.11 or newer was found: install one, or make PYTHON=/path/to/python3' >&2; exit 4
	@echo 'installing the versions of constraints.txt into .venv (6 GB of disk with PyTorch; only the first time)' >&2
	$(VENV_PYTHON) -m pip install --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@pwd -P > $(STAMP)
