"""The discriminator equals its formula; its losses."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from numpy.lib.stride_tricks import sliding_window_view

from ldm_jax.nn.discriminator import (
  PatchDiscriminator,
  generator_loss,
  hinge_loss,
  vanilla_loss,
)

discriminator = PatchDiscriminator(width=4, layers=2)
logits_of = jax.jit(discriminator.apply)


def random_images(seed, shape=(8, 17, 16, 3)):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.uniform(-1, 1, shape), jnp.float32)


@pytest.fixture(scope="module")
def params():
  return jax.jit(discriminator.init)(jax.random.key(0), random_images(0))


def reference(params, x):
  """Two layers in float64 numpy."""
  params = jax.tree.map(lambda p: np.asarray(p, np.float64), params["params"])

  def conv(x, name, stride):
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = sliding_window_view(padded, (4, 4), (1, 2))
    windows = windows[:, ::stride, ::stride]
    x = np.einsum("bhwcij,ijco->bhwo", windows, params[name]["kernel"])
    return x + params[name].get("bias", 0.0)

  def norm(x, name):
    x = (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-5)
    return x * params[name]["scale"] + params[name]["bias"]

  leaky = lambda x: np.where(x > 0, x, 0.2 * x)
  x = leaky(conv(x, "conv0", 2))
  x = leaky(norm(conv(x, "conv1", 2), "norm1"))
  x = leaky(norm(conv(x, "conv2", 1), "norm2"))
  return conv(x, "conv3", 1)


def test_logits_equal_the_formula_in_numpy(params):
  np.testing.assert_allclose(
    logits_of(params, random_images(1)),
    reference(params, random_images(1)),
    rtol=1e-4,
    atol=1e-5,
  )


def test_a_batch_given_twice_has_the_same_logits(params):
  """True of the biased variance only."""
  x = random_images(1)
  once = logits_of(params, x)
  twice = logits_of(params, jnp.concatenate([x, x]))
  np.testing.assert_allclose(
    twice, np.concatenate([once, once]), rtol=1e-4, atol=1e-5
  )


def test_statistics_are_of_the_global_batch(params):
  """Eight devices give the logits of one."""
  mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
  x = jax.device_put(
    random_images(1), NamedSharding(mesh, PartitionSpec("data"))
  )
  np.testing.assert_allclose(
    logits_of(params, x),
    logits_of(params, random_images(1)),
    rtol=1e-4,
    atol=1e-5,
  )


def test_bfloat16_computes_nearly_the_same_and_returns_float32(params):
  coarse = PatchDiscriminator(width=4, layers=2, dtype=jnp.bfloat16)
  logits = jax.jit(coarse.apply)(params, random_images(1))
  assert logits.dtype == jnp.float32
  error = np.abs(logits - logits_of(params, random_images(1)))
  assert error.max() < 0.05 * np.abs(logits).max()


@pytest.mark.parametrize(
  "layers, size, logits", [(3, 2_765_633, 30), (2, 663_361, 62)]
)
def test_the_published_sizes(layers, size, logits):
  """Of LDM's NLayerDiscriminator on 256 pixels, counted in torch."""
  x = jnp.zeros((1, 256, 256, 3))
  model = PatchDiscriminator(layers=layers)
  out, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), x)
  assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == size
  assert out.shape == (1, logits, logits, 1)
  assert variables.keys() == {"params"}


def test_parameters_are_initialised_as_in_the_reference():
  model = PatchDiscriminator(width=16)
  x = jnp.zeros((1, 32, 32, 3))
  params = jax.jit(model.init)(jax.random.key(0), x)["params"]
  kernel = np.asarray(params["conv3"]["kernel"])
  assert abs(kernel.mean()) < 1e-3 and abs(kernel.std() - 0.02) < 1e-3
  scale = np.asarray(params["norm3"]["scale"])
  assert abs(scale.mean() - 1) < 0.01 and abs(scale.std() - 0.02) < 0.005
  assert not params["norm3"]["bias"].any()
  assert set(params["conv3"]) == {"kernel"}
  bound = (3 * 4 * 4) ** -0.5
  bias = np.abs(params["conv0"]["bias"])
  assert 0.8 * bound < bias.max() < bound


def test_images_too_small_for_a_logit_are_refused():
  with pytest.raises(ValueError, match=r"23x64 .* 24x24"):
    PatchDiscriminator().init(jax.random.key(0), jnp.zeros((1, 23, 64, 3)))
  x = jnp.zeros((1, 24, 24, 3))
  out, _ = jax.eval_shape(
    PatchDiscriminator().init_with_output, jax.random.key(0), x
  )
  assert out.shape == (1, 1, 1, 1)


def logits(seed):
  return jax.random.normal(jax.random.key(seed), (2, 5, 5, 1)) * 3


def test_the_vanilla_loss_is_the_cross_entropy_of_the_labels():
  entropy = optax.sigmoid_binary_cross_entropy
  real, fake = logits(0), logits(1)
  expected = (entropy(real, 1.0).mean() + entropy(fake, 0.0).mean()) / 2
  np.testing.assert_allclose(vanilla_loss(real, fake), expected, rtol=1e-6)


def test_the_hinge_loss_is_one_at_zero_logits_and_flat_beyond_the_margin():
  """And optax's hinge loss for labels of one and minus one in between."""
  zero, far = jnp.zeros((2, 5, 5, 1)), jnp.full((2, 5, 5, 1), 1.5)
  assert hinge_loss(zero, zero) == 1
  assert hinge_loss(far, -far) == 0
  gradients = jax.grad(hinge_loss, (0, 1))(far, -far)
  assert not any(g.any() for g in gradients)
  real, fake = logits(0), logits(1)
  expected = optax.hinge_loss(real, 1.0) + optax.hinge_loss(fake, -1.0)
  np.testing.assert_allclose(
    hinge_loss(real, fake), expected.mean() / 2, rtol=1e-6
  )


def test_the_generator_loss_falls_evenly_with_every_logit():
  gradient = jax.grad(generator_loss)(logits(0))
  np.testing.assert_allclose(gradient, -1 / gradient.size, rtol=1e-6)
