# `make train` and `make test` do everything from a fresh clone: environment, installation from the lock, the work.
PYTHON ?= python3
ARGS ?=
BIN := .venv/bin

train: .venv/ready
	$(BIN)/python train.py $(ARGS)

test: .venv/ready-test
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow" $(ARGS)

# The table and the picture at the head of README.md: two minutes a run; finished ones are skipped.
results: .venv/ready
	$(BIN)/python -m lm.sweep --mixers mingru minlstm attention gru lstm mamba --seeds 1 2 --runs runs/comparison --png docs/curves.png
	$(BIN)/python -m lm.compare runs/comparison --insert README.md

# docs/performance.md, measured on this machine: leave it alone for a quarter of an hour meanwhile.
performance: .venv/ready-test
	{ printf '# Performance\n\nMade by `make performance`; each table names its conditions. No GPU has been at hand so far: the rows\n'; \
	  printf 'for one await `python -m lm.bench cell --device cuda` and `pytest tests/test_recurrence_triton.py` there.\n'; \
	  for bench in cell train "numerics --plot docs/numerics.png" parameters overhead; do \
	    printf '\n## python -m lm.bench %s\n\n```text\n' "$$bench"; \
	    $(BIN)/python -m lm.bench $$bench || exit; printf '```\n'; \
	  done; } > docs/performance.md

lint: .venv/ready-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

.venv/ready-test: .venv/ready
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	touch $@

.PHONY: train test results performance lint
