"""Python blocks of README.md and docs/ are run, in order, on small models."""

import shutil

import documentation
import numpy as np
import pytest
import small_models
from documentation import blocks, name_of

import ldm_jax

pytestmark = pytest.mark.slow

# Names that a page's text supposes, by page.
PRELUDES = {
  "README.md": "import jax; images = jax.numpy.zeros((1, 16, 16, 3))",
  "docs/python.md": "import jax; images = jax.numpy.zeros((1, 16, 16, 3))",
  "docs/sampling.md": """
import jax, jax.numpy as jnp
from ldm_jax.diffusion.prediction import Estimate
from ldm_jax.diffusion.schedule import Schedule
schedule, noise = Schedule(), jnp.ones((2, 4, 4, 1))
denoise = lambda xt, level: Estimate(0 * xt, xt / level.sigma)
keys = jax.random.split(jax.random.key(0), 2)
""",
  "docs/extending.md": """
import dataclasses
from typing import NamedTuple
import flax.linen as nn, jax.numpy as jnp, numpy as np
from ldm_jax import EvaluationRequest, SamplerConfig, evaluate
from ldm_jax import register_sampler
from ldm_jax.diffusion.loss import Density
from ldm_jax.diffusion.prediction import Prediction, target
from ldm_jax.diffusion.samplers.sampler_table import EPS, NOISE, X0, row
from ldm_jax.diffusion.schedule import Schedule, q_sample
from ldm_jax.nn.bottleneck import DiagonalGaussian
from ldm_jax.nn.conditioners.embedders import Condition
from ldm_jax.nn.layers import sinusoids
from ldm_jax.runtime.monitoring.trackers import Tracker
schedule = Schedule()
""",
}

# A server must be running.
NOT_RUN = {"docs/serving.md"}

PAGES = [
  page
  for page in documentation.PAGES
  if blocks(page, "python") and name_of(page) not in NOT_RUN
]


@pytest.fixture(scope="session")
def models(tmp_path_factory):
  return small_models.write(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_python_of_a_page_runs(page, models, tmp_path, monkeypatch):
  """All blocks in one namespace; those of other programs are skipped."""
  place = tmp_path / "work"
  shutil.copytree(models, place)
  monkeypatch.chdir(place)
  monkeypatch.syspath_prepend(str(documentation.ROOT / "examples"))
  name = name_of(page)
  scope = {"__name__": "page", "ldm_jax": ldm_jax, "numpy": np}
  exec(PRELUDES.get(name, ""), scope)
  with documentation.small_training(monkeypatch):
    for block in blocks(page, "python"):
      if block.title.startswith("Before"):
        continue
      if block.title.endswith(".py"):
        (place / block.title).write_text(block.text)
      text = "\n" * (block.line - 1) + block.text
      exec(compile(text, name, "exec"), scope)
