"""A run that begins from a model initialises only what the model lacks."""

import dataclasses

import jax
import numpy as np
import pytest
from networks import random_like
from test_meshes import STAGE_ONE, STAGE_TWO, draw, frozen_of

from ldm_jax.latent_diffusion import Parameters
from ldm_jax.loaded_model import LoadedModel
from ldm_jax.runtime.devices.sharding import MeshShape
from ldm_jax.runtime.optimizer import Optimizer
from ldm_jax.runtime.program_cache import Structure
from ldm_jax.training import compiled_steps
from ldm_jax.training.compiled_steps import CompiledTask
from ldm_jax.training.initialize_from import initialised_where_absent

RANDOM = " xor("  # of threefry, in XLA's text


def compiled_for(task):
  """The programs, a batch, and the text of `init_from` for a start."""
  sharding = MeshShape(2, 4).build()
  frozen = frozen_of(task)
  frozen = jax.device_put(frozen, sharding.tree_shardings(frozen))
  batch = sharding.put_batch(draw(0))
  parts = task, sharding, Structure.of(frozen), Structure.of(batch)
  jitted = compiled_steps._programs(*parts).init_from._jitted
  key = jax.device_put(jax.random.key(0), sharding.replicated)
  text = lambda start: text_of(jitted, key, batch, frozen, start)
  return CompiledTask(task, sharding, 0, frozen, batch), batch, text


def text_of(jitted, *args):
  return jitted.lower(*args).compile().as_text()


@pytest.mark.parametrize(
  ("ema_decay", "optimizer"),
  [(0.9, Optimizer(1e-3)), (None, Optimizer(1e-3, muon=0.02))],
)
def test_parameters_to_begin_from_are_not_initialised_before(
  ema_decay, optimizer
):
  task = dataclasses.replace(
    STAGE_TWO, ema_decay=ema_decay, optimizer=optimizer
  )
  compiled, batch, text = compiled_for(task)
  start = jax.tree.map(np.array, random_like(compiled.shapes.params, 3))
  placed = jax.device_put(start, compiled.shardings.params)
  assert RANDOM not in text(placed)
  state = compiled.init_from(batch, placed)
  # They have become the state's: no second set stays in memory.
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(placed))
  for part in filter(None, (state.params, state.ema)):
    jax.tree.map(np.testing.assert_array_equal, part, start)
  same = jax.tree.map(
    lambda array, home: array.sharding == home, state, compiled.shardings
  )
  assert all(jax.tree.leaves(same)) and state.step == 0
  assert (state.ema is None) == (ema_decay is None)
  # Not Muon's three coefficients.
  moments = [leaf for leaf in jax.tree.leaves(state.opt) if leaf.size > 3]
  assert len(moments) > 50 and not any(map(np.any, moments))
  draws = jax.jit(lambda key: jax.random.normal(key, (9,)))
  assert RANDOM in text_of(draws, jax.random.key(0))
  # They share no memory, since the step donates the state.
  places = [
    leaf.addressable_shards[0].data.unsafe_buffer_pointer()
    for leaf in jax.tree.leaves((state.params, state.ema))
  ]
  assert len(set(places)) == len(places)


def test_what_a_start_replaces_in_stage_one_is_not_initialised():
  """The discriminator begins with random parameters unless it is continued."""
  compiled, batch, text = compiled_for(STAGE_ONE)
  shardings = {
    "autoencoder": compiled.shardings.params["autoencoder"],
    "critic": compiled.shardings.critic,
  }
  shapes = {
    "autoencoder": compiled.shapes.params["autoencoder"],
    "critic": compiled.shapes.critic,
  }
  start = jax.tree.map(np.array, random_like(shapes, 3))
  placed = jax.device_put(start, shardings)
  assert RANDOM not in text(placed)
  critic = placed.pop("critic")
  assert RANDOM in text(placed)
  state = compiled.init_from(batch, placed)
  for part in (state.params["autoencoder"], state.ema):
    jax.tree.map(np.testing.assert_array_equal, part, start["autoencoder"])
  kernel = lambda params: np.asarray(params["params"]["conv0"]["kernel"])
  assert np.std(kernel(state.critic)) > 0.01
  assert (kernel(state.critic) != kernel(critic)).all()


def test_conditioners_that_the_start_lacks_have_their_initial_values():
  task, batch, key = STAGE_TWO, draw(0), jax.random.key(5)
  frozen = frozen_of(task)
  shapes = jax.eval_shape(task.init_params, key, batch, frozen)
  held = random_like({"tokens": shapes["conditioners"]["tokens"]})
  params = Parameters({}, np.float32(1), held, {})
  start = LoadedModel(task.model, params, None, 16, 16)
  found = initialised_where_absent(task, start, key, batch, frozen)
  label = jax.jit(
    lambda *args: task.init_params(*args)["conditioners"]["label"]
  )
  expected = label(key, batch, frozen)
  jax.tree.map(
    np.testing.assert_array_equal, found["conditioners"]["label"], expected
  )
  assert all(np.any(leaf) for leaf in jax.tree.leaves(expected))
  rest = found | {"conditioners": found["conditioners"]["tokens"]}
  assert all(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(rest))
