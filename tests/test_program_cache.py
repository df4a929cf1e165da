"""Equal modules share jitted functions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from ldm_jax.nn.autoencoder import Autoencoder
from ldm_jax.runtime.program_cache import (
  Structure,
  initialization,
  shared_by_value,
)


def test_equal_arguments_share_a_function():
  traced = []

  @shared_by_value
  def program(module, factor):
    def run(x):
      traced.append(module.latent_channels)
      return x * factor

    return jax.jit(run)

  x = jnp.arange(3.0)
  for channels in (4, 4, 8):
    module = dataclasses.replace(Autoencoder(), latent_channels=channels)
    np.testing.assert_array_equal(program(module, 2)(x), 2 * x)
  assert traced == [4, 8]
  np.testing.assert_array_equal(program(Autoencoder(), 3)(x), 3 * x)


def test_arguments_without_a_hash_are_not_kept():
  calls = []

  @shared_by_value
  def program(array):
    calls.append(1)
    return lambda x: x + array

  for value in (1.0, 2.0):
    array = np.full(2, value)
    np.testing.assert_array_equal(program(array)(0), array)
  assert len(calls) == 2


def test_a_structure_is_equal_for_arrays_of_the_same_shapes():
  rng = np.random.default_rng(0)
  draw = lambda *shape: {"a": jnp.asarray(rng.standard_normal(shape)), "b": 1}
  one, same, other = map(Structure.of, (draw(2, 3), draw(2, 3), draw(3, 2)))
  assert one == same and hash(one) == hash(same) and one != other
  assert one.shapes["a"].shape == (2, 3)


def test_shapes_and_values_of_a_state_share_one_trace():
  traced = []

  @dataclasses.dataclass(frozen=True)
  class Task:
    width: int

    def init(self, key, batch, frozen):
      traced.append(self.width)
      drawn = jax.random.normal(key, (self.width,))
      return {"x": drawn * frozen["scale"], "rows": jnp.float32(len(batch))}

  frozen, batch = {"scale": jnp.float32(2)}, jnp.zeros((5, 3))
  for _ in range(2):
    made = initialization(Task(4), Structure.of(batch), Structure.of(frozen))
  key = jax.random.key(1)
  state = jax.jit(made.function)(key, batch, frozen)
  assert traced == [4]
  assert made.shapes["x"].shape == (4,)
  wanted = jax.jit(Task(4).init)(key, batch, frozen)
  jax.tree.map(np.testing.assert_array_equal, state, wanted)
