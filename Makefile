# `make demo` and `make test` are all a new user needs: Python 3.11 or later, and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup demo test lint unit bench bench-prepare bench-train bench-serving bench-retrieval bench-first-run bench-quality bench-compress bench-tune bench-faults bench-soak clean
setup: $(VENV)/.installed

$(VENV)/.installed: constraints.txt pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing from constraints.txt (about 3 minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup
	@$(BIN)/rayrec demo --out runs/demo

test: lint unit

lint: setup
	$(BIN)/ruff check app tuning cluster tests examples
	$(BIN)/ruff format --check app tuning cluster tests examples
	$(BIN)/mypy
	$(BIN)/lint-imports

# Two processes: most tests wait for others to start. The tests of a file share what they set up. In the order
# of the folders, so that the files with the fewest tests, of whole services, are not the last.
unit: setup
	$(BIN)/python -m pytest tests -n 2 --dist loadfile --no-loadscope-reorder

bench: bench-prepare bench-train bench-serving

bench-prepare: setup
	$(BIN)/python -m tests.bench.prepare

bench-train: setup
	$(BIN)/python -m tests.bench.softmax
	$(BIN)/python -m tests.bench.train
	$(BIN)/python -m tests.bench.train_beauty

bench-serving: setup
	$(BIN)/python -m tests.bench.serving

bench-faults: setup
	$(BIN)/python -m tests.bench.faults

# An hour or two: each way to make three trained models smaller. COMPRESS="--only beauty".
bench-compress: setup
	$(BIN)/python -m tests.bench.compress $(COMPRESS)

# An hour and a half: searches of equal time, budgets, kills. TUNE="--seeds 1 --minutes 2".
bench-tune: setup
	$(BIN)/python -m tests.bench.tune $(TUNE)

bench-soak: setup
	$(BIN)/python -m tests.bench.soak

bench-retrieval: setup
	$(BIN)/python -m tests.bench.retrieval

bench-first-run: setup
	$(BIN)/python -m tests.bench.first_run

# Hours: every recipe with three seeds. It goes on where it was interrupted; QUALITY="--only beauty --seeds 1".
bench-quality: setup
	$(BIN)/python -m tests.bench.quality $(QUALITY)

clean:
	rm -rf runs .mypy_cache .ruff_cache .pytest_cache
