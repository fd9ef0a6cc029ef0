# `make demo` and `make test` do all the set-up themselves. Variables:
#   VENV=folder        the virtual environment (default .venv)
#   PYTHON=python3.12  the interpreter that makes it (default: the first one of at least 3.11)
#   TORCH_INDEX=url    where PyTorch comes from, such as https://download.pytorch.org/whl/cpu on Linux without a GPU
#   OUT=folder         where the demo writes (default demo)
#   ARGS=...           further arguments of pytest

.POSIX:
.SUFFIXES:

VENV = .venv
PYTHON =
TORCH_INDEX =
OUT = demo
ARGS =
PIP = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check

.PHONY: help demo test test-fast lint clean distclean

help:
	@echo 'make demo       explain two photographs and write a report to $(OUT)/'
	@echo 'make test       lint, types and every test'
	@echo 'make test-fast  the tests that take no more than a few seconds each'
	@echo 'make lint       ruff and mypy'
	@echo 'make clean      remove build outputs, caches and the demo; make distclean the environment too'

demo: $(VENV)/.installed-demo
	@$(VENV)/bin/whylens demo --out '$(OUT)'

test: lint
	$(VENV)/bin/python -m pytest --durations=15 $(ARGS)

test-fast: $(VENV)/.installed-dev
	$(VENV)/bin/python -m pytest -m 'not slow' --durations=15 $(ARGS)

lint: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

clean:
	rm -rf build dist demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests training benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf '$(VENV)'

$(VENV)/.installed-demo: pyproject.toml $(VENV)/.python
	@$(MAKE) -s EXTRA=demo VENV='$(VENV)' TORCH_INDEX='$(TORCH_INDEX)' install
	@touch $@

$(VENV)/.installed-dev: pyproject.toml $(VENV)/.python
	@$(MAKE) -s EXTRA=dev VENV='$(VENV)' TORCH_INDEX='$(TORCH_INDEX)' install
	@touch $(VENV)/.installed-demo $@

.PHONY: install
install:
	@echo 'Installing whylens[$(EXTRA)] into $(VENV). This happens once and takes some minutes without a sign of life:'
	@echo 'PyTorch is about 250 MB to download on macOS and in its CPU build, and about 3 GB in its CUDA build, which'
	@echo 'Linux gets unless TORCH_INDEX=https://download.pytorch.org/whl/cpu is given.'
	@if [ -n '$(TORCH_INDEX)' ]; then $(PIP) --index-url '$(TORCH_INDEX)' torch torchvision; fi
	@$(PIP) --editable '.[$(EXTRA)]'

$(VENV)/.python:
	@found=; seen=; \
	for candidate in $(PYTHON) $$([ -n '$(PYTHON)' ] || echo python3 python3.14 python3.13 python3.12 python3.11); do \
	    version=$$("$$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue; \
	    seen="$$seen $$candidate is $$version."; \
	    if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then found=$$candidate; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	    echo "whylens needs Python 3.11 or newer.$${seen:- None was found.} Name one: make PYTHON=/path/to/python3.12" >&2; \
	    exit 1; \
	fi; \
	echo "Making $(VENV) with $$found"; \
	"$$found" -m venv '$(VENV)'
	@touch $@
