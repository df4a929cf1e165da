"""Strips of lines, and autoencoders in tiles, against the whole image."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from ldm_jax.nn.autoencoder import Autoencoder
from ldm_jax.nn.bottleneck import VectorQuantizer
from ldm_jax.nn.conv_stack.exact_tiles import decode_in_tiles, encode_in_tiles
from ldm_jax.nn.conv_stack.networks import ConvStack
from ldm_jax.nn.conv_stack.strips import (
  Store,
  Strips,
  image_moments,
  in_place,
  line_moments,
  over_strips,
)
from ldm_jax.runtime.devices import memory

RNG = np.random.default_rng(0)
TRUNK = ConvStack(8, (1, 2, 2), blocks=1, groups=4)
KL = Autoencoder(TRUNK, 4)
VQ = Autoencoder(
  dataclasses.replace(TRUNK, attention_levels=(1,), remat="full"),
  3,
  VectorQuantizer(16, 3),
)


def images_of(b, h, w):
  return jnp.asarray(RNG.uniform(-1, 1, (b, h, w, 3)), jnp.float32)


def variables_of(autoencoder):
  """Random ones, norms and biases included."""
  latents = autoencoder.latent_shape(8, 8)
  shapes = jax.eval_shape(
    autoencoder.init,
    jax.random.key(0),
    images_of(1, 8, 8),
    jnp.zeros((1, *latents)),
  )

  def sample(leaf):
    fan = np.prod(leaf.shape[:-1]) or 1
    values = RNG.standard_normal(leaf.shape) / np.sqrt(fan)
    return jnp.asarray(values + (leaf.ndim == 1), jnp.float32)

  return jax.tree.map(sample, shapes)


def box(x):
  """Sums over 3 x 3 pixels, zeros outside."""
  return lax.reduce_window(x, 0.0, lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")


def joined(function, x, lines, halo):
  strips = Strips.of(x.shape[1], lines, halo)
  return over_strips(function, Store.of(x), strips)


def replaced(function, x, lines, halo):
  """By way of a store that has space for the results."""
  strips, result = (
    Strips.of(x.shape[1], lines, halo),
    jax.eval_shape(function, x),
  )
  store = Store.with_space(x, [result.shape[1:]])
  store = in_place(function, store, strips)
  return store.read(0, store.height)


def integers(*shape):
  return jnp.asarray(RNG.integers(0, 9, shape), jnp.float32)


@pytest.mark.parametrize("height", [20, 21, 34])
@pytest.mark.parametrize("method", [joined, replaced])
def test_strips_are_the_whole(method, height):
  """Integers: equal bit for bit, at borders of strips and of the image."""
  x, twice = integers(2, height, 5, 2), lambda x: box(box(x))
  found = jax.jit(lambda x: method(twice, x, 4, 2))(x)
  np.testing.assert_array_equal(found, twice(x))


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_strips_may_double(channels):
  """To twice, four and eight times the size, in the memory of the result."""
  x = integers(2, 28, 6, 2)
  double = lambda x: box(x.repeat(2, 1).repeat(2, 2))[..., :1].repeat(
    channels, -1
  )
  for method in (joined, replaced):
    np.testing.assert_array_equal(method(double, x, 4, 2), double(x))


def test_strips_may_halve():
  x, halve = integers(1, 28, 6, 1), lambda x: box(x)[:, ::2, ::2]
  np.testing.assert_array_equal(joined(halve, x, 6, 2), halve(x))


@pytest.mark.parametrize("mean", [0.0, 300.0])
def test_moments_of_lines_are_those_of_the_image(mean):
  """Against float64; a mean of 300 deviations costs no digits."""
  x = RNG.standard_normal((2, 37, 16, 8)).astype(np.float32)
  x += np.float32(mean) + np.arange(37, dtype=np.float32)[:, None, None] / 9
  found = image_moments(line_moments(jnp.asarray(x), 2))
  groups = x.astype(np.float64).reshape(2, -1, 2, 4)
  np.testing.assert_allclose(found[0], groups.mean((1, 3)), rtol=1e-6)
  np.testing.assert_allclose(found[1], groups.var((1, 3)), rtol=1e-5)


def whole_and_tiled(autoencoder, variables, x, method, tile=16):
  """Encoded moments, or decoded images; both in one program."""

  def both(x):
    whole = autoencoder.apply(variables, x, method=method)
    if method == "encode":
      tiled = encode_in_tiles(autoencoder, variables, x, tile=tile)
      return whole.moments, tiled.moments
    return whole, decode_in_tiles(autoencoder, variables, x, tile=tile)

  return jax.jit(both)(x)


@pytest.mark.parametrize(
  ("autoencoder", "size"), [(KL, (2, 52, 24)), (VQ, (1, 40, 72))]
)
@pytest.mark.parametrize("method", ["encode", "decode"])
def test_tiles_are_the_whole(autoencoder, size, method):
  """Of several images; of heights that tiles do not divide."""
  x = images_of(*size)
  if method == "decode":
    shape = len(x), *autoencoder.latent_shape(*x.shape[1:3])
    x = jnp.asarray(RNG.standard_normal(shape), jnp.float32)
  variables = variables_of(autoencoder)
  whole, tiled = whole_and_tiled(autoencoder, variables, x, method)
  scale = float(jnp.abs(whole).max())
  np.testing.assert_allclose(tiled, whole, atol=1e-5 * scale)


def test_bfloat16_tiles_are_the_whole_within_a_level():
  trunk = dataclasses.replace(TRUNK, multipliers=(1, 2), dtype="bfloat16")
  autoencoder = Autoencoder(trunk, 4)
  variables = variables_of(autoencoder)
  x = jnp.asarray(RNG.standard_normal((1, 24, 8, 4)), jnp.float32)
  whole, tiled = whole_and_tiled(autoencoder, variables, x, "decode", 12)
  scale = float(jnp.abs(whole).max())
  np.testing.assert_allclose(tiled, whole, atol=2 / 255 * scale)


@pytest.mark.slow
def test_a_million_pixels_in_a_sixth_of_the_memory():
  """kl-f8 of width 16 with fewer blocks, 1024 x 1024 pixels."""
  autoencoder = Autoencoder(ConvStack(16, blocks=1, groups=16))
  variables = variables_of(autoencoder)
  latents = jnp.asarray(RNG.standard_normal((1, 128, 128, 4)), jnp.float32)
  whole = jax.jit(lambda z: autoencoder.apply(variables, z, method="decode"))
  tiles = jax.jit(
    lambda z: decode_in_tiles(autoencoder, variables, z, tile=192)
  )
  programs = [f.lower(latents).compile() for f in (whole, tiles)]
  images = [program(latents) for program in programs]
  scale = float(jnp.abs(images[0]).max())
  np.testing.assert_allclose(images[1], images[0], atol=1e-5 * scale)
  large, small = (
    program.memory_analysis().temp_size_in_bytes for program in programs
  )
  assert small < large / 6


def test_a_tile_is_positive():
  latents = jnp.zeros((1, 8, 8, 4))
  with pytest.raises(ValueError, match="a tile of 0 pixels"):
    decode_in_tiles(KL, variables_of(KL), latents, tile=0)


def test_the_least_memory_is_below_that_of_the_program():
  """And less for tiles than for the whole."""
  trunk = dataclasses.replace(
    TRUNK, multipliers=(1, 2), has_mid_attention=False
  )
  autoencoder = Autoencoder(trunk, 4)
  variables, latents = variables_of(autoencoder), jnp.zeros((1, 64, 8, 4))
  whole = lambda v, z: autoencoder.apply(v, z, method="decode")
  tiled = lambda v, z: decode_in_tiles(autoencoder, v, z, tile=16)
  least = [memory.minimum_bytes(f, variables, latents) for f in (whole, tiled)]
  assert 0 < least[1] < least[0]
  program = jax.jit(tiled).lower(variables, latents).compile()
  found = program.memory_analysis()
  used = found.temp_size_in_bytes + found.argument_size_in_bytes
  assert least[1] <= used + found.output_size_in_bytes
