"""Transformer blocks: scanned or not, with and without rematerialisation."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import random_variables

from ldm_jax.nn.conv_stack.resnet import ResBlock
from ldm_jax.nn.layers import remat_policy
from ldm_jax.nn.transformer import SpatialTransformer

BLOCK = SpatialTransformer(3, heads=2, head_width=8, groups=4)


def inputs(seed=0):
  """Parameters of which none is zero, pixels, and a context."""
  rng = np.random.default_rng(seed)
  x, context = (
    np.float32(rng.standard_normal(shape))
    for shape in ((2, 6, 5, 12), (2, 7, 10))
  )
  return random_variables(BLOCK, x, context, seed=seed), x, context


@functools.cache
def value_and_grads(block):
  loss = lambda *args: (block.apply(*args) ** 2).mean()
  return jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(*inputs())


# But (False, "off"), which is the block itself.
KINDS = [(False, "dots"), (False, "full")]
KINDS += [(True, remat) for remat in ("off", "dots", "full")]


@pytest.mark.parametrize(("is_scanned", "remat"), KINDS)
def test_scan_and_remat_change_nothing(is_scanned, remat):
  block = BLOCK.clone(is_scanned=is_scanned, remat=remat)
  ours, theirs = value_and_grads(block), value_and_grads(BLOCK)
  assert jax.tree.structure(ours) == jax.tree.structure(theirs)
  for one, other in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
    assert np.abs(other).max() > 0
    scale = float(np.abs(other).max())
    np.testing.assert_allclose(one, other, atol=2e-6 * max(scale, 1))


def test_a_scan_has_the_code_of_one_block():
  """Of three blocks' matrix products only one block's are in the program."""
  args = inputs()
  products = lambda block: str(jax.make_jaxpr(block.apply)(*args)).count(
    "dot_general"
  )
  each = (products(BLOCK) - products(BLOCK.clone(depth=1))) // 2
  assert products(BLOCK.clone(is_scanned=True)) == products(
    BLOCK.clone(depth=1)
  )
  assert each > 5


def test_a_scan_has_the_same_parameters():
  x, context = inputs()[1:]
  scanned = BLOCK.clone(is_scanned=True)
  init = lambda block: jax.eval_shape(block.init, jax.random.key(0), x, context)
  assert init(scanned) == init(BLOCK)


def stored(remat):
  """Elements that a residual block stores for its backward pass."""
  block = remat_policy(remat, ResBlock)(16, groups=4)
  x = jnp.ones((1, 8, 8, 16))
  params = random_variables(block, x)
  _, pull = jax.vjp(lambda x: nn.apply(lambda m, x: m(x), block)(params, x), x)
  return sum(leaf.size for leaf in jax.tree.leaves(pull))


def test_remat_stores_less():
  assert stored("full") < stored("dots") < stored("off")
