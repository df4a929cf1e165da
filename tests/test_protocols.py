"""User-defined networks, conditioners and guidance."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.diffusion.guidance import ClassifierFreeGuidance, Guidance
from ldm_jax.diffusion.samplers import SamplerConfig
from ldm_jax.latent_diffusion import LatentDiffusion, Parameters
from ldm_jax.nn.autoencoder import Autoencoder, PixelSpace
from ldm_jax.nn.backbone import Backbone
from ldm_jax.nn.bottleneck import DeterministicPosterior, DiagonalGaussian
from ldm_jax.nn.conditioners.clip_embedder import ClipEmbedder
from ldm_jax.nn.conditioners.conditioner import Conditioner
from ldm_jax.nn.conditioners.embedders import (
  ClassEmbedder,
  Condition,
  LayoutEmbedder,
  SizeEmbedder,
  TextEmbedder,
)
from ldm_jax.nn.conditioners.source_image import SourceImage
from ldm_jax.nn.conditioners.spatial import (
  DepthMap,
  LowResolution,
  MaskedImage,
  NeighbourEmbeddings,
  SegmentationEmbedder,
)
from ldm_jax.nn.dit.dit import DiT
from ldm_jax.nn.encoders.clip_text import ClipText
from ldm_jax.nn.encoders.text_encoder import TextEncoder
from ldm_jax.nn.first_stage import FirstStage, Posterior
from ldm_jax.nn.flux.flux import Flux
from ldm_jax.nn.mmdit.mmdit import MMDiT
from ldm_jax.nn.unet import UNet
from ldm_jax.runtime.devices.sharding import MeshShape
from ldm_jax.runtime.optimizer import Optimizer
from ldm_jax.sampling.engine import SamplingEngine
from ldm_jax.sampling.sampling_config import (
  Conditioning,
  GenerationInputs,
  SamplingConfig,
)
from ldm_jax.training.denoiser import DenoiserTask, Frozen

SIDE = 6  # no power of two: a U-Net of two levels would take it, of three not


class FourierMixer(nn.Module):
  """Mixes pixels by Fourier transforms (FNet, Lee-Thorp et al. 2022)."""

  width: int = 8
  channels: int = 3

  size_multiple = 1

  @nn.compact
  def __call__(self, xt, t, condition):
    time = jnp.stack([jnp.cos(t / 100), jnp.sin(t / 100)], axis=-1)
    emb = nn.Dense(self.width)(jnp.concatenate([time, condition.vector], -1))
    h = nn.Dense(self.width)(xt) + emb[:, None, None]
    h = h + jnp.fft.fft2(h, axes=(1, 2)).real / xt.shape[1]
    return nn.Dense(self.channels)(nn.gelu(h)).astype(jnp.float32)


class AngleEmbedder(nn.Module):
  """An angle as a vector; the unconditional output is 0."""

  input_key: str = "angle"
  drop_rate: float = 0.1

  has_unconditional = True
  is_frozen = False

  def __call__(self, angle, drop):
    vector = jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)
    return Condition(vector=jnp.where(drop[:, None], 0.0, vector))


class HalvingStage(nn.Module):
  """Latents are the means of 2 x 2 pixels; no parameters."""

  stride = 2
  latent_channels = 3

  def latent_shape(self, height, width):
    return height // 2, width // 2, 3

  def encode(self, images):
    return self.posterior(nn.avg_pool(images, (2, 2), (2, 2)))

  def posterior(self, moments):
    return DeterministicPosterior(moments)

  def decode(self, latents):
    return latents.repeat(2, axis=1).repeat(2, axis=2)

  def __call__(self, images, noise):
    return self.decode(self.encode(images).sample(noise)), jnp.zeros(())


class HighNoiseGuidance(NamedTuple):
  """Guidance whose scale decreases to 1 with the noise."""

  scale: float = 2.0

  def needs_unconditional(self):
    return True

  def check(self):
    if self.scale < 0:
      raise ValueError("scale must be 0 or more")

  def combine(self, unconditional, conditional, fraction):
    scale = 1 + (self.scale - 1) * fraction
    return unconditional + scale * (conditional - unconditional)


MODEL = LatentDiffusion(HalvingStage(), FourierMixer(), (AngleEmbedder(),))


@pytest.mark.parametrize(
  "kind, members",
  [
    (Backbone, [UNet(), DiT(), MMDiT(), Flux(), FourierMixer()]),
    (FirstStage, [Autoencoder(), PixelSpace(), HalvingStage()]),
    (
      Posterior,
      [
        DiagonalGaussian(np.zeros(1), np.zeros(1)),
        DeterministicPosterior(np.zeros(1)),
      ],
    ),
    (
      Conditioner,
      [
        AngleEmbedder(),
        ClassEmbedder(3, 4),
        SizeEmbedder(),
        TextEmbedder(TextEncoder(5)),
        LayoutEmbedder(TextEncoder(5)),
        ClipEmbedder((ClipText(),)),
        SegmentationEmbedder(),
        DepthMap(),
        MaskedImage(),
        LowResolution(),
        SourceImage(),
        NeighbourEmbeddings(),
      ],
    ),
    (Guidance, [ClassifierFreeGuidance(), HighNoiseGuidance()]),
  ],
)
def test_the_packages_own_classes_fulfil_their_protocols(kind, members):
  for member in members:
    assert isinstance(member, kind), member
  assert not isinstance(object(), kind)


def test_a_model_of_user_networks_learns():
  task = DenoiserTask(MODEL, Optimizer(rate=3e-3, warmup=0), latent_scale=1.0)
  rng = np.random.default_rng(0)
  batch = {
    "image": rng.integers(0, 256, (16, SIDE, SIDE, 3)).astype(np.uint8),
    "angle": rng.uniform(0, 6, 16).astype(np.float32),
  }
  frozen = Frozen({}, jnp.float32(1.0))
  assert jax.tree.leaves(task.frozen_shapes(batch).first_stage) == []
  state = jax.jit(task.init)(jax.random.key(0), batch, frozen)
  step = jax.jit(task.step)
  losses = []
  for i in range(60):
    state, metrics = step(
      state, frozen, batch, jax.random.fold_in(jax.random.key(1), i)
    )
    losses.append(float(metrics["loss"]))
  assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:10])


def test_a_model_of_user_networks_is_sampled_with_user_guidance():
  inputs = {"angle": np.zeros(1, np.float32)}
  init = lambda key: MODEL.init(key, inputs, (1, SIDE // 2, SIDE // 2, 3))
  params = jax.jit(init)(jax.random.key(0))
  params = Parameters(
    {}, jnp.float32(1.0), params["conditioners"], params["unet"]
  )
  assert MODEL.size_multiple == 2
  engine = SamplingEngine(MODEL, params, MeshShape().build(jax.devices()[:1]))
  angle = {"angle": np.float32([0.0, 2.0])}
  sides = [
    Conditioning(angle, {"angle": np.full(2, is_null)})
    for is_null in (False, True)
  ]

  def images(guidance):
    config = SamplingConfig(SIDE, SIDE, SamplerConfig(4), guidance)
    inputs = GenerationInputs(2, 2, output="latents")
    return np.concatenate(list(engine.generate(config, *sides, inputs)))

  own = images(HighNoiseGuidance())
  assert own.shape == (2, SIDE // 2, SIDE // 2, 3) and np.isfinite(own).all()
  assert np.abs(own - images(ClassifierFreeGuidance(1.0))).max() > 1e-3
  np.testing.assert_allclose(
    images(HighNoiseGuidance(1.0)), images(ClassifierFreeGuidance(1.0)), 1e-4
  )
  with pytest.raises(ValueError, match="0 or more"):
    images(HighNoiseGuidance(-1.0))
