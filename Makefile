# make demo, make test, make check, make bench: each sets up what it needs in .venv and runs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test zoo soak fuzz fuzz-campaign vision check format bench docs clean browser figures

NATIVE := $(wildcard src/stockpot/kernels/native/*)

$(STAMP): pyproject.toml constraints.txt setup.py $(NATIVE)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt "torch>=2.6"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $(STAMP)

# For the tests of timm, open_clip and torchvision, in a folder of their own: torchvision is built for another torch
# than ours, and where it can be imported transformers breaks.
VISION := $(VENV)/vision/.installed

$(VISION): $(STAMP)
	rm -rf $(VENV)/vision
	{ $(BIN)/python -m pip install --quiet --no-deps --constraint constraints.txt --target $(VENV)/vision \
		torchvision timm open_clip_torch ftfy wcwidth && touch $(VISION); } \
		|| { [ "$$CI" != true ] && echo "no timm, open_clip, torchvision: their tests are skipped"; }

vision: $(VISION)

demo: $(STAMP)
	$(BIN)/stockpot demo --out stockpot-demo

# Two processes with a thread each: more threads than cores wait for one another. Files in their order: by number of tests,
# as pytest-xdist would have them, the few slow ones of training come last, and one process waits.
test: $(STAMP) $(VISION) browser
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# Every architecture in every form, of which make test takes one each, a tensor of 2^31 elements, ten thousand shards, the
# longest of the demo and of the examples: some minutes.
zoo: $(STAMP) $(VISION)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "slow or not slow" tests/models tests/checkpoint/test_extremes.py \
		tests/lab/test_demo.py tests/docs/test_examples.py

# Faults by the hundred, and what only shows after long: an hour; docs/safety.md has the last result.
soak: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "slow or not slow" --soak --timeout 5400 tests/safety

# A minute of inputs made by what they reach in our readers; fuzz-campaign: ten million and more, recorded, goes on
# where it stopped. Where atheris has no wheel there is nothing to do.
FUZZ := $(BIN)/python -c "import atheris" 2> /dev/null || { echo "no atheris: nothing is fuzzed"; [ "$$CI" != true ]; exit; }; \
	OMP_NUM_THREADS=1 $(BIN)/python -m fuzz

fuzz: $(STAMP)
	$(FUZZ) --self-test
	$(FUZZ) --seconds 60

fuzz-campaign: $(STAMP)
	$(FUZZ) --campaign

# The tests of pages want chromium and skip without it; a machine of ours gets it, others are left as they are.
browser:
	@command -v chromium > /dev/null || [ "$$CI" != true ] || { apt-get update -qq && apt-get install -y -qq chromium; } \
		> /dev/null || echo "no chromium: tests of pages are skipped"

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP)
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks.soups
	$(BIN)/python -m benchmarks.training
	$(BIN)/python -m benchmarks.images
	$(BIN)/python -m benchmarks.inputs

docs: $(STAMP)
	$(BIN)/python scripts/docs_pages.py
	$(BIN)/python -m benchmarks.table
	$(BIN)/python -m benchmarks.safety

figures: $(STAMP)
	$(BIN)/python scripts/docs_figures.py

clean:
	rm -rf $(VENV) .bench build dist stockpot-demo
