"""Autoencoders of every kind are opened for comparison."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import random_variables
from test_dc_autoencoder import SMALL as DC
from test_evaluate import run

import ldm_jax
from ldm_jax.errors import LdmJaxError
from ldm_jax.evaluation.first_stage.codec import Codec
from ldm_jax.evaluation.first_stage.load import (
  LoadedFirstStage,
  load_first_stages,
)
from ldm_jax.nn.autoencoder import Autoencoder, ConvStack, PixelSpace
from ldm_jax.nn.bottleneck import DiagonalGaussian
from ldm_jax.nn.tiny_autoencoder import TinyAutoencoder
from ldm_jax.runtime.devices.sharding import MeshShape

KL = Autoencoder(ConvStack(8, (1, 2), 1, groups=4), 4)
TINY = TinyAutoencoder()


@pytest.fixture(scope="module")
def sharding():
  return MeshShape().build()


def variables_of(module):
  side = module.stride
  latents = jnp.zeros((1, *module.latent_shape(side, side)))
  return random_variables(module, jnp.zeros((1, side, side, 3)), latents)


@pytest.mark.parametrize("module", [KL, TINY, DC], ids=["kl", "taesd", "dcae"])
def test_folders_of_autoencoders_are_opened(module, sharding, tmp_path):
  variables = variables_of(module)
  folder = str(tmp_path / "model" / "vae")
  ldm_jax.save_pretrained(module, variables, folder)
  (found,) = load_first_stages([folder], sharding)
  assert found.name == "model/vae" and found.path == folder
  assert type(found.module) is type(module)
  jax.tree.map(
    np.testing.assert_array_equal, dict(found.variables), dict(variables)
  )
  sizes = [leaf.size for leaf in jax.tree.leaves(variables)]
  assert found.parameter_count == sum(sizes)


def test_single_files_of_autoencoders_are_opened(sharding, tmp_path):
  path = str(tmp_path / "kl.safetensors")
  ldm_jax.save_single_file(KL, variables_of(KL), path)
  (found,) = load_first_stages([path], sharding)
  assert (found.name, found.module.stride) == ("kl.safetensors", 2)


@pytest.mark.slow
def test_runs_of_pixels_have_a_first_stage_of_pixels(sharding, tmp_path):
  folder = str(run(tmp_path, "pixels"))
  (found,) = load_first_stages([folder], sharding)
  assert isinstance(found.module, PixelSpace) and found.parameter_count == 0


@pytest.mark.slow
def test_runs_of_both_stages_have_the_same_first_stage(sharding, tmp_path):
  one = run(tmp_path, "one")
  two = run(tmp_path, "two", f"--config.first_stage={one}")
  found = load_first_stages([str(one), str(two)], sharding)
  assert [stage.name for stage in found] == ["one", "two"]
  images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
  first, second = (
    Codec(stage, sharding, batch=2).encode(images) for stage in found
  )
  np.testing.assert_array_equal(first.mode, second.mode)


def test_what_is_no_autoencoder_is_refused(sharding, tmp_path):
  empty = str(tmp_path / "empty")
  os.makedirs(empty)
  with pytest.raises(LdmJaxError, match="has neither"):
    load_first_stages([empty], sharding)
  with pytest.raises(LdmJaxError):
    load_first_stages([str(tmp_path / "missing")], sharding)


class GaussianPixels(PixelSpace):
  """Pixels with posteriors of logarithmic variances -1."""

  def encode(self, images):
    return DiagonalGaussian(images, jnp.full_like(images, -1))


def test_batches_are_padded_and_cut(sharding):
  images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
  stage = LoadedFirstStage("pixels", "pixels", GaussianPixels(), {})
  for batch in (1, 2, 8):
    codec = Codec(stage, sharding, batch)
    found = codec.encode(images)
    np.testing.assert_allclose(found.mode, images / 127.5 - 1, atol=1e-6)
    np.testing.assert_array_equal(found.logvar, np.full(images.shape, -1))
    np.testing.assert_array_equal(codec.reconstruct(images), images)
  cost = codec.cost(images, rounds=1)
  assert min(cost.encoded, cost.decoded, cost.decoding_bytes) > 0
