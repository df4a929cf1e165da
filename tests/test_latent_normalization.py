"""Statistics of latents: what a denoiser sees, and what is decoded."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import random_variables

from ldm_jax import config_json
from ldm_jax.latent_diffusion import LatentDiffusion, Parameters
from ldm_jax.latents import encode_batch, encode_raw
from ldm_jax.nn.autoencoder import Autoencoder, ConvStack
from ldm_jax.nn.bottleneck import DeterministicPosterior, DiagonalGaussian
from ldm_jax.nn.latent_normalization import (
  BatchStatistics,
  LatentNormalization,
  denormalize,
  normalize,
)
from ldm_jax.nn.unet import UNet

RNG = np.random.default_rng(0)
CHANNELS = 2
MEAN, STD = (0.4, -1.1), (2.0, 0.3)
PER_CHANNEL = LatentNormalization(MEAN, STD)
BATCH = BatchStatistics(
  tuple(RNG.normal(size=8).tolist()), tuple(RNG.uniform(0.1, 2, 8).tolist())
)
TRUNK = ConvStack(4, (1, 1), 0, (), False, groups=2)


def stage(normalization):
  return Autoencoder(TRUNK, CHANNELS, normalization=normalization)


def latents(height=4, width=6):
  shape = (3, height, width, CHANNELS)
  return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def test_each_channel_has_its_own_mean_and_std():
  z = latents()
  found = normalize(stage(PER_CHANNEL), DeterministicPosterior(z)).mode()
  needed = (np.asarray(z, np.float64) - MEAN) / STD
  np.testing.assert_allclose(found, needed, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(4, 6), (5, 3)])
def test_statistics_of_patches(height, width):
  """Against the patches of 2 x 2, written out as channels (c, i, j)."""
  z = latents(height, width)
  found = normalize(stage(BATCH), DeterministicPosterior(z)).mode()
  std = np.sqrt(np.asarray(BATCH.variance) + 1e-4)
  for c in range(CHANNELS):
    for y in range(height):
      for x in range(width):
        k = 4 * c + 2 * (y % 2) + x % 2
        needed = (z[:, y, x, c] - BATCH.mean[k]) / std[k]
        np.testing.assert_allclose(
          found[:, y, x, c], needed, rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("normalization", [None, PER_CHANNEL, BATCH])
def test_samples_and_latents_come_back(normalization):
  mean, logvar, noise = latents(), latents(), latents()
  module, posterior = stage(normalization), DiagonalGaussian(mean, logvar)
  normal = normalize(module, posterior)
  for own, other in (
    (posterior.mode(), normal.mode()),
    (posterior.sample(noise), normal.sample(noise)),
  ):
    np.testing.assert_allclose(
      denormalize(module, other), own, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("normalization", [PER_CHANNEL, BATCH])
def test_a_model_decodes_what_it_encodes(normalization):
  """The model's latents are scaled and normal; the network's are neither."""
  module, images = stage(normalization), RNG.uniform(-1, 1, (2, 8, 8, 3))
  images = jnp.asarray(images, jnp.float32)
  variables = random_variables(module, images, latents()[:2, :4, :4])
  model = LatentDiffusion(module, UNet(channels=32))
  params = Parameters(variables, jnp.float32(0.3), {}, {})

  @jax.jit
  def both(params, images):
    """Latents and images of the model, then of the network."""
    x0 = 0.3 * model.encode(params, images).mode()
    raw = module.apply(variables, images, method="encode").mode()
    decoded = module.apply(variables, raw, method="decode")
    return x0, model.decode(params, x0), raw, decoded

  x0, found, raw, needed = map(np.asarray, both(params, images))
  np.testing.assert_allclose(found, needed, rtol=1e-4, atol=1e-5)
  assert np.abs(x0 / 0.3 - raw).max() > 0.1


def test_cached_moments_are_normalised_once():
  module, images = stage(PER_CHANNEL), RNG.integers(0, 256, (2, 8, 8, 3))
  batch = {"image": jnp.asarray(images, jnp.uint8)}
  zeros = jnp.zeros((2, 4, 4, CHANNELS))
  variables = random_variables(module, jnp.zeros((2, 8, 8, 3)), zeros)

  @jax.jit
  def both(batch):
    """Posteriors of the images and of their cached moments."""
    cached = {"moments": encode_raw(module, variables, batch).moments}
    return [encode_batch(module, variables, each) for each in (batch, cached)]

  of_images, of_moments = both(batch)
  np.testing.assert_allclose(of_images.mean, of_moments.mean, rtol=1e-6)
  np.testing.assert_allclose(of_images.logvar, of_moments.logvar, rtol=1e-6)


@pytest.mark.parametrize("normalization", [None, PER_CHANNEL, BATCH])
def test_a_config_keeps_every_digit(normalization):
  tree = json.loads(json.dumps(config_json.to_json(stage(normalization))))
  assert config_json.from_json(tree, "config", ()) == stage(normalization)


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: LatentNormalization(()), "one number"),
    (lambda: LatentNormalization((0.0,), (1.0, 0.0)), "above 0"),
    (lambda: LatentNormalization((float("nan"),)), "finite"),
    (lambda: BatchStatistics((0.0,), ()), "1 means, but 0"),
    (lambda: BatchStatistics((0.0,), (-1.0,)), "negative"),
    (lambda: LatentNormalization((1.0, 2.0)).statistics(4, 4, 3), "1 or 3"),
    (lambda: BATCH.statistics(4, 4, 3), "need 12"),
    (
      lambda: Autoencoder(
        TRUNK, decoder_trunk=dataclasses.replace(TRUNK, multipliers=(1,))
      ),
      "as many levels",
    ),
  ],
)
def test_errors(make, message):
  with pytest.raises(ValueError, match=message):
    make()
