# Two commands do everything: `make sweep` and `make test`. Each makes .venv first, if need be.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := $(CURDIR)/.venv/bin
READY := .venv/.ready

export PATH := $(BIN):$(PATH)
export MLFLOW_DISABLE_TELEMETRY ?= true
export PIP_DISABLE_PIP_VERSION_CHECK ?= 1

.PHONY: sweep test check ui install clean

sweep: $(READY)  ## the embedded default: model tiny, built-in data, whatever GPU is here, 10 trials
	mlflow run . -e sweep --env-manager local

test: $(READY)  ## every test; the slow ones start the real `mlflow run`
	python -m pytest -n 2 --dist loadfile

check: $(READY)  ## style, types, layers
	ruff format --check .
	ruff check .
	mypy --num-workers 2
	lint-imports

ui: $(READY)  ## the MLflow UI on this folder's runs
	mlflow ui --backend-store-uri "$${MLFLOW_TRACKING_URI:-sqlite:///mlflow.db}"

install: $(READY)

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' || \
		{ echo "green-tune needs Python 3.11 or 3.12; set PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $(READY)

clean:  ## removes the environment and caches, never runs or adapters
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache *.egg-info
