"""Test session: eight virtual devices, a compilation cache, checked shapes."""

import gc
import os
import pathlib
import re
import sys

# Byte code is kept: a process imports JAX in a third of the time with it.
os.environ["PYTHONDONTWRITEBYTECODE"] = ""

# A worker has one core: threads of BLAS would wait for each other.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

# Halves compile times; compiled programs run for seconds only.
os.environ["XLA_FLAGS"] = " ".join(
  [os.environ.get("XLA_FLAGS", ""), "--xla_backend_optimization_level=0"]
)

import jax
import jaxtyping
import pytest
from beartype import BeartypeConf
from beartype.claw import beartype_packages
from jaxtyping import install_import_hook

ROOT = pathlib.Path(__file__).parent.parent
CACHE = ROOT / ".jax_cache"

sys.dont_write_bytecode = False
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

# Processes that tests start share the cache.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(CACHE)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PLATFORMS"] = "cpu"

# Functions are traced, so that shapes are checked, whatever was stored before.
os.environ["LDM_JAX_STORED_PROGRAMS"] = "0"

# The longest first, so that no worker is left with one of them at the end.
LONGEST = (
  *("training", "bad_inputs", "initialize_from", "generation", "processes"),
  *("published_experiments", "sampling", "denoiser_task", "pretrained"),
  *("meshes", "faults", "conditions", "mmdit", "autoencoder_task", "clip"),
  *("flux", "dit", "dc_autoencoder", "exact_tiles", "prepare_latents"),
  "text_encoders",
)

# Slow tests that other tests cover in a shorter form; `make everything` runs
# them, and fault injection in full.
RARE = re.compile(
  r"one_device\[\w+-(1x8|2x4|4x1x2x1|8x1)|"
  r"keep_their_rows\[.*\((1, 4, 2|2, 2, 2)\)|"
  r"keep_their_rows\[(?!residual|auto).*\(1, 8, 1\)|one_device\[every.*1x2x4|"
  r"memorisation_ratio|do_not_depend_on_batches_or_devices|"
  r"to_report\[(?!class)|"
  r"learns\[(?!ldm/kl_f8\]|sd/(sd1|sdxl_base)\])|"
  r"begins_from_a_folder(\[False|_of_text)|"
  r"killed_at_random|a_hundred_steps|three_thousand|five_hundred|"
  r"the_present_devices|statistics_agree|"
  r"twenty_thousand|digits_are_sampled|is_memorised|eight_modes|scores_of_images"
)

# Types in signatures are checked here, and only here, by two hooks. That of
# jaxtyping checks shapes, too; it knows the recursive types of optax, leaves
# dataclasses and decorated functions to the package's own checks, and does not
# print whole values, which may be endless where they were read from files.
# beartype's, for all other modules, takes a tenth of the time for each call.
NEEDS_JAXTYPING = re.compile(
  r"^(from|import) (jaxtyping|optax)|@.*dataclass|wraps|"
  r"\b(Images|PerImage)\b",
  re.M,
)
JAXTYPED, OTHERS = ["ldm_jax.weights"], []
for source in sorted((ROOT / "ldm_jax").rglob("*.py")):
  module = ".".join(source.relative_to(ROOT).with_suffix("").parts)
  text = source.read_text()
  if source.name == "__init__.py":  # its name stands for the whole package
    package = module.removesuffix(".__init__")
    if "\ndef " in text and package != "ldm_jax":
      JAXTYPED.append(package)
  elif NEEDS_JAXTYPING.search(text):
    JAXTYPED.append(module)
  else:
    OTHERS.append(module)
WHOLE = tuple(f"{name}." for name in JAXTYPED)
install_import_hook(JAXTYPED, "beartype.beartype")
beartype_packages(
  [module for module in OTHERS if not module.startswith(WHOLE)],
  conf=BeartypeConf(claw_is_pep526=False),
)

# The checks take two fifths of the time of tracing. These files trace
# networks of published sizes, which their own tests check in small.
UNCHECKED = ("published_experiments", "published_sizes")

# Tracing allocates many objects that live as long as the program: collecting at
# the usual threshold takes a sixth of its time.
gc.set_threshold(200_000, 20, 20)


@pytest.fixture(autouse=True)
def unmeasured_operators():
  """What a command measured of this machine is not assumed by later tests."""
  from ldm_jax.nn.operators import choice

  yield
  choice.set_bfloat16_gain(None)


@pytest.fixture(autouse=True)
def checked_shapes(request: pytest.FixtureRequest):
  """Shapes are checked in all tests but the quick ones of those files."""
  name = request.path.stem.removeprefix("test_")
  is_slow = request.node.get_closest_marker("slow") is not None
  is_unchecked = name in UNCHECKED and not is_slow
  jaxtyping.config.update("jaxtyping_disable", is_unchecked)
  yield
  jaxtyping.config.update("jaxtyping_disable", False)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
  places = {f"test_{name}": i for i, name in enumerate(LONGEST)}
  for item in items:
    if RARE.search(item.name):
      item.add_marker(pytest.mark.rare)
    if item.path.stem in places:
      item.add_marker(pytest.mark.long)
  items.sort(key=lambda item: places.get(item.path.stem, len(places)))
