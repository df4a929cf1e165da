"""Values that are not finite, the best checkpoint, and half precision."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax import config
from ldm_jax.diffusion.samplers import sampler_table
from ldm_jax.errors import NonFinite
from ldm_jax.runtime.checkpointing.policy import CheckpointPolicy
from ldm_jax.sampling.generation import check_finite


@pytest.mark.parametrize(
  "best_is, worst", [("min", math.inf), ("max", -math.inf)]
)
def test_a_metric_that_is_no_number_is_the_worst(best_is, worst):
  policy = CheckpointPolicy(best="psnr", best_is=best_is)
  for metrics in (
    {},
    {"psnr": math.nan},
    {"psnr": -math.inf if best_is == "min" else math.inf},
  ):
    assert policy.score(metrics) == worst
  assert policy.score({"psnr": 3.5}) == 3.5


def test_latents_that_are_not_finite_are_refused():
  latents = np.zeros((3, 2, 2, 4), np.float32)
  check_finite(latents)
  check_finite(np.zeros((1, 2, 2, 3), np.uint8))
  latents[1, 0, 0, 0] = np.nan
  with pytest.raises(NonFinite, match="1 of 3 latents hold NaN or infinity"):
    check_finite(latents)


def half_precision_task():
  """(task, batch, frozen, state) of shapes, with networks in bfloat16."""
  made = config.override(
    config.load("glyphs_text"),
    {
      "task.model.unet.dtype": "bfloat16",
      "task.model.unet.dropout": "0.1",
      "task.model.unet.multipliers": "1,",
      "task.model.unet.attention.depths": "1,",
      "task.optimizer.muon": "none",
    },
  )
  stage = config.load("glyphs_autoencoder").task.autoencoder
  task = made.task.with_first_stage(stage)
  batch = {
    "image": jax.ShapeDtypeStruct((4, 32, 32, 3), jnp.uint8),
    "tokens": jax.ShapeDtypeStruct((4, 20), jnp.int32),
  }
  frozen = task.frozen_shapes(batch)
  key = jax.random.key(0)
  return task, batch, frozen, jax.eval_shape(task.init, key, batch, frozen)


@pytest.mark.slow
def test_random_numbers_are_of_32_bits_in_half_precision():
  """A normal number of 16 bits has 128 magnitudes, the largest 2.9."""
  task, batch, frozen, state = half_precision_task()
  key = jax.random.key(0)
  program = str(jax.make_jaxpr(task.step)(state, frozen, batch, key))
  assert "bf16" in program
  widths = re.findall(r"bit_width=(\d+)", program)
  assert len(widths) > 4 and set(widths) == {"32"}
  noise = sampler_table.normal(jax.random.split(key, 2), (4, 4, 1))
  assert noise.dtype == jnp.float32


def test_parameters_averages_and_optimizer_are_in_float32():
  *_, state = half_precision_task()
  for tree in (state.params, state.ema, state.opt):
    kinds = {leaf.dtype for leaf in jax.tree.leaves(tree)}
    assert not kinds & {jnp.dtype("bfloat16"), jnp.dtype("float16")}
  kinds = {leaf.dtype.name for leaf in jax.tree.leaves(state.ema)}
  assert kinds == {"float32"}
