"""The decoder that sees the known part of an image."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import random_variables

from ldm_jax.latent_diffusion import LatentDiffusion, Parameters
from ldm_jax.nn.autoencoder import Autoencoder, ConvStack
from ldm_jax.nn.inpainting_decoder import InpaintingAutoencoder
from ldm_jax.nn.unet import UNet
from ldm_jax.pixels import to_float, to_uint8
from ldm_jax.runtime.devices.sharding import MeshShape
from ldm_jax.sampling.latent_codec import LatentCodec

TRUNK = ConvStack(4, (1, 2, 2), 0, (), False, groups=2)
WIDER = ConvStack(8, (1, 2, 2), 1, (), False, groups=2)
MODULE = InpaintingAutoencoder(TRUNK, 2, decoder_trunk=WIDER)
RNG = np.random.default_rng(0)


def normal(*shape):
  return jnp.asarray(RNG.normal(size=shape), jnp.float32)


@pytest.fixture(scope="module")
def variables():
  return random_variables(MODULE, normal(1, 8, 12, 3), normal(1, 2, 3, 2))


@pytest.fixture(scope="module")
def decode(variables):
  return jax.jit(
    lambda *given: MODULE.apply(variables, *given, method="decode")
  )


def test_where_nothing_is_known_it_is_the_decoder(variables, decode):
  z, images = normal(2, 2, 3, 2), normal(2, 8, 12, 3)
  plain = Autoencoder(TRUNK, 2, decoder_trunk=WIDER)
  decode_plain = functools.partial(plain.apply, method="decode")
  needed = jax.jit(decode_plain)(variables, z)
  np.testing.assert_allclose(decode(z), needed, rtol=1e-5, atol=1e-5)
  hole = jnp.ones((2, 8, 12, 1))
  np.testing.assert_allclose(
    decode(z, images, hole), needed, rtol=1e-5, atol=1e-5
  )


def test_where_all_is_known_latents_do_not_matter(decode):
  images, hole = normal(2, 8, 12, 3), jnp.zeros((2, 8, 12, 1))
  first, second = (decode(normal(2, 2, 3, 2), images, hole) for _ in range(2))
  np.testing.assert_array_equal(first, second)
  other = decode(normal(2, 2, 3, 2), normal(2, 8, 12, 3), hole)
  assert np.abs(other - first).max() > 0.01


def test_pixels_of_the_hole_do_not_matter(decode):
  z, images = normal(2, 2, 3, 2), normal(2, 8, 12, 3)
  hole = jnp.asarray(RNG.uniform(size=(2, 8, 12, 1)) > 0.5, jnp.float32)
  changed = jnp.where(hole > 0, normal(2, 8, 12, 3), images)
  np.testing.assert_array_equal(
    decode(z, images, hole), decode(z, changed, hole)
  )


def test_an_image_needs_a_mask(variables):
  with pytest.raises(ValueError, match="images and masks"):
    MODULE.apply(
      variables, normal(1, 2, 3, 2), normal(1, 8, 12, 3), method="decode"
    )


@pytest.mark.parametrize("tile", [None, 16])
def test_inpainting_decodes_with_the_known_part(variables, tile):
  """In tiles, and of other autoencoders, it is not read."""
  params = Parameters(variables, jnp.float32(0.5), {}, {})
  model = LatentDiffusion(MODULE, UNet(channels=32))
  codec = LatentCodec(model, params, MeshShape().build(jax.devices()[:1]))
  images = RNG.integers(0, 256, (2, 8, 12, 3), np.uint8)
  masks = RNG.uniform(size=(2, 8, 12)) > 0.5
  z = normal(2, 2, 3, 2)
  found = codec.decode(z, tile, (images, masks))
  known = to_float(jnp.asarray(images)), jnp.float32(masks)[..., None]
  given = known if tile is None else ()
  decode = jax.jit(functools.partial(MODULE.apply, method="decode"))
  needed = decode(variables, z / 0.5, *given)
  assert np.abs(found.astype(int) - to_uint8(needed)).max() <= 1
