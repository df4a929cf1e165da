# Every target makes what it needs: a fresh machine wants only Python and make.
PYTHON ?= python3
VENV ?= .venv
RUNS ?= runs
BIN = $(VENV)/bin
BASE = $(VENV)/installed
STAMP = $(VENV)/installed-test
# A file stays with one worker; tests/conftest.py says which files come first.
PYTEST = $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: quickstart gallery test slow everything reference lint clean

# Trains both stages on the built-in glyphs, draws, and judges what it drew. As
# two devices, two cores finish half as much again; less optimisation compiles
# in two thirds of the time, to code as fast. Other hardware ignores the first.
# The configs' own steps take 12 minutes each, and reach what the README shows.
STEPS_ONE ?= 1200
STEPS_TWO ?= 600
quickstart: export XLA_FLAGS ?= --xla_force_host_platform_device_count=2 \
  --xla_backend_optimization_level=1
quickstart: $(BASE)
	$(BIN)/python train.py --config=configs/glyphs_autoencoder.py \
	  --workdir=$(RUNS)/glyphs_autoencoder --config.steps=$(STEPS_ONE) \
	  --config.task.optimizer.decay_steps=$(STEPS_ONE)
	$(BIN)/python train.py --config=configs/glyphs_text.py \
	  --workdir=$(RUNS)/glyphs_text \
	  --config.first_stage=$(RUNS)/glyphs_autoencoder \
	  --config.steps=$(STEPS_TWO) \
	  --config.task.optimizer.decay_steps=$(STEPS_TWO)
	$(BIN)/python sample.py --model=$(RUNS)/glyphs_text --num 16 --steps 25 \
	  --prompt "a large red striped circle at the top left on a black background" \
	  --out $(RUNS)/samples
	$(BIN)/python -m ldm_jax.cli.report --model=$(RUNS)/glyphs_text \
	  --out $(RUNS)/report

# One condition on the glyphs: make show-class, show-layout, ...; see
# benchmarks/glyphs.py. Some twelve minutes, and as many for the first stage.
show-%: export XLA_FLAGS ?= --xla_force_host_platform_device_count=2 \
  --xla_backend_optimization_level=1
show-%: $(BASE)
	$(BIN)/python benchmarks/glyphs.py $*

# A claim about latent diffusion: make claim-one, -two, -three; half an hour each.
claim-%: export XLA_FLAGS ?= --xla_force_host_platform_device_count=2 \
  --xla_backend_optimization_level=1
claim-%: $(BASE)
	$(BIN)/pip install -q -e ".[benchmarks]"
	$(BIN)/python benchmarks/claims.py $*

# The pictures of docs/gallery.md, from the quickstart's model.
gallery: $(BASE)
	$(BIN)/python docs/gallery.py

test: $(STAMP)
	$(PYTEST) $(ONLY)

# Heavier truths, and live comparisons with torch, diffusers and lpips. The last
# asks for torchvision, which has no CPU build and is not needed.
slow: reference
	$(PYTEST) -m "slow and not rare"

# The same at length, every fault as often as benchmarks/faults.md says: hours.
everything: reference
	FAULTS=1 $(PYTEST) -m slow

reference: $(STAMP)
	$(BIN)/pip install -q torch==2.13.0
	$(BIN)/pip install -q --no-deps "lpips>=0.1.4" "torch-fidelity>=0.4"
	$(BIN)/pip install -q "diffusers>=0.42" "safetensors>=0.5" \
	  "peft>=0.17"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

$(BASE): setup.cfg pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and \
	  'Python 3.11 or newer is needed; try make PYTHON=python3.12')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -e .
	touch $@

$(STAMP): $(BASE)
	$(BIN)/pip install -q -e ".[test]"
	touch $@

clean:
	rm -rf $(VENV) .jax_cache .pytest_cache .ruff_cache build *.egg-info
