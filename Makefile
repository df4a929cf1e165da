# Each target installs what it needs: a fresh machine needs Python and make only.
ifndef PYTHON
PYTHON := $(or $(shell .ci/newest-python),python3)
endif
VENV ?= .venv
RUNS ?= runs
BIN = $(VENV)/bin
BASE = $(VENV)/installed
STAMP = $(VENV)/installed-test
# Installs with uv, in a fifth of pip's time; with pip where uv cannot.
install = { command -v uv || $(BIN)/pip install -q uv; } > /dev/null && \
  PATH="$$PATH:$(abspath $(BIN))" uv pip install -q --python $(BIN)/python $(1) || \
  $(BIN)/pip install -q $(1)
# One worker runs all of a file; tests/conftest.py orders the files.
WORKERS = 2
PYTEST = $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile \
  --no-loadscope-reorder

.PHONY: quickstart gallery test slow live everything reference lint check docs \
  figures clean

# Trains both stages on the built-in glyphs, samples, and scores the samples. Two
# cores as two devices train 1.5 times as fast as one device; optimization level 1
# compiles in two thirds of the time, to equally fast code. Other hardware ignores
# the first flag. Where the time goes: benchmarks/quickstart.md.
quickstart: export XLA_FLAGS ?= --xla_force_host_platform_device_count=2 \
  --xla_backend_optimization_level=1
quickstart: $(BASE)
	@echo "1 of 4: the first stage, an autoencoder"
	$(BIN)/ldm-jax train --config=configs/quickstart_autoencoder.py \
	  --workdir=$(RUNS)/glyphs_autoencoder
	@echo "2 of 4: the second stage, text to image on its latents"
	$(BIN)/ldm-jax train --config=configs/quickstart_text.py \
	  --workdir=$(RUNS)/glyphs_text \
	  --config.first_stage=$(RUNS)/glyphs_autoencoder
	@echo "3 of 4: images for one prompt"
	$(BIN)/ldm-jax sample --model=$(RUNS)/glyphs_text --num 16 --steps 25 \
	  --prompt "a large red striped circle at the top left on a black background" \
	  --out $(RUNS)/samples
	@echo "4 of 4: the report, on images for 256 held-out captions"
	$(BIN)/ldm-jax report --model=$(RUNS)/glyphs_text \
	  --out $(RUNS)/report

# Trains and scores one condition on the glyphs: make show-class, show-layout, ...;
# see benchmarks/glyphs.py. Some 12 minutes, and as many for the first stage.
show-%: export XLA_FLAGS ?= --xla_force_host_platform_device_count=2 \
  --xla_backend_optimization_level=1
show-%: $(BASE)
	$(BIN)/python benchmarks/glyphs.py $*

# Tests a claim about latent diffusion: make claim-one, -two, -three, -four; half
# an hour each.
claim-%: export XLA_FLAGS ?= --xla_force_host_platform_device_count=2 \
  --xla_backend_optimization_level=1
claim-%: $(BASE)
	$(BIN)/pip install -q -e ".[benchmarks]"
	$(BIN)/python benchmarks/claims.py $*

# The images of docs/gallery.md, from the quickstart's model.
gallery: $(BASE)
	$(BIN)/python docs/gallery.py

# The figures of docs/how, by their code; two_stages.png from the quickstart's model.
figures: $(BASE)
	$(BIN)/pip install -q -e ".[docs]"
	for name in compression two_stages schedules guidance sampler_tables \
	  bottleneck; do $(BIN)/python docs/figures/$$name.py || exit 1; done

test: $(STAMP)
	$(PYTEST) $(ONLY)

# Slow tests. Comparisons with torch, diffusers and lpips are skipped without them.
# A third worker, since some of them wait for a scheduler or for other processes.
slow: WORKERS = 3
slow: $(STAMP)
	$(PYTEST) -m "slow and not rare"

# Live comparisons with torch, diffusers and lpips; torch's CPU build is not
# available for every Python (try PYTHON=python3.11 VENV=.venv311). lpips declares
# torchvision, which has no CPU build and is not needed.
live: reference
	$(PYTEST) -m "slow and not rare" -k "reference or torch"

# The same in full, every fault as often as in benchmarks/faults.md: hours.
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

# The site, in build/site; a broken link or an unknown name is an error.
docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict -q

$(VENV)/installed-docs: $(BASE)
	$(BIN)/pip install -q -e ".[docs]"
	touch $@

# The checks that a commit must pass: see .ci/run.
check:
	.ci/run

$(BASE): setup.cfg setup.py pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and \
	  'Python 3.11 or newer is needed; try make PYTHON=python3.12')"
	$(PYTHON) -m venv $(VENV)
	@echo "installing"
	$(call install,-e .)
	touch $@

$(STAMP): $(BASE)
	$(call install,-e ".[test]")
	touch $@

clean:
	rm -rf $(VENV) .venv311 .jax_cache .pytest_cache .ruff_cache build *.egg-info
