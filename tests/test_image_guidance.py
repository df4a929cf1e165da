"""Models that edit an image, and guidance towards image and text."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.concat_conditioning import draw_drops, prepare_inputs
from ldm_jax.diffusion.guidance import ClassifierFreeGuidance
from ldm_jax.diffusion.samplers import SamplerConfig
from ldm_jax.diffusion.schedule import Level
from ldm_jax.errors import ConfigError
from ldm_jax.latent_diffusion import LatentDiffusion, Parameters
from ldm_jax.loaded_model import LoadedModel
from ldm_jax.nn.autoencoder import PixelSpace
from ldm_jax.nn.conditioners.embedders import ClassEmbedder, Condition
from ldm_jax.nn.conditioners.source_image import SourceImage
from ldm_jax.nn.conditioners.spatial import MaskedImage
from ldm_jax.pretrained.configs.concat_inputs import concat_conditioners
from ldm_jax.pretrained.configs.unet_reader import Inputs
from ldm_jax.runtime.devices.sharding import MeshShape
from ldm_jax.sampling import (
  Conditioning,
  GenerationInputs,
  ImageInputs,
  SamplingConfig,
  SamplingEngine,
)
from ldm_jax.sampling.pipeline import Pipeline

RNG = np.random.default_rng(0)
SIDE = 4
TWO = ClassifierFreeGuidance(2.0)


class Product(nn.Module):
  """A backbone whose output is a product of its conditions."""

  size_multiple = 1

  def __call__(self, xt, t, condition, **_):
    value = jnp.mean(condition.context, (1, 2))[:, None, None, None]
    return 0.1 * xt + (1 + value) * (1 + 0.5 * condition.concat)


MODEL = LatentDiffusion(
  PixelSpace(), Product(), (ClassEmbedder(3, 8), SourceImage())
)
TABLE = jnp.asarray(RNG.standard_normal((4, 8)), jnp.float32)
PARAMS = Parameters(
  {},
  jnp.float32(0.5),
  {"label": {"params": {"table": {"embedding": TABLE}}}, "source": {}},
  {},
)
IMAGES = RNG.integers(0, 256, (2, SIDE, SIDE, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def engine():
  return SamplingEngine(MODEL, PARAMS, MeshShape().build(jax.devices()[:1]))


def sampled(engine, image, text, images=IMAGES, label=1, steps=1, **options):
  """Latents of one step of DDIM, which is linear in the guided output."""
  config = SamplingConfig(
    SIDE,
    SIDE,
    SamplerConfig(steps, timestep_spacing="trailing"),
    ClassifierFreeGuidance(float(text)),
    image_guidance=ClassifierFreeGuidance(float(image)),
    **options,
  )
  raw = {"label": np.full(2, label, np.int32)}
  no, yes = np.zeros(2, bool), np.ones(2, bool)
  sides = Conditioning(raw, {"label": no}), Conditioning(raw, {"label": yes})
  inputs = GenerationInputs(
    2, 2, output="latents", image_inputs=ImageInputs(images)
  )
  (found,) = engine.generate(config, *sides, inputs)
  return found.astype(np.float64)


def test_equation_3():
  """e(0, 0) + s_I (e(I, 0) - e(0, 0)) + s_T (e(I, T) - e(I, 0))."""
  network = LatentDiffusion(None, Product(), prediction="x0")
  concat = jnp.asarray(RNG.standard_normal((2, 2, 2, 3)), jnp.float32)
  text, null = (
    jnp.asarray(RNG.standard_normal((2, 1, 4)), jnp.float32) for _ in range(2)
  )
  xt = jnp.asarray(RNG.standard_normal((2, 2, 2, 3)), jnp.float32)
  both = Condition(context=text, concat=concat)
  image = Condition(context=null, concat=concat)
  none = Condition(context=null, concat=0 * concat)
  denoise = network.composed_denoiser(
    Parameters({}, 1.0, {}, {}),
    image,
    [both],
    None,
    ClassifierFreeGuidance(7.5),
    (none, ClassifierFreeGuidance(1.5)),
  )
  level = Level(jnp.float32(3), jnp.float32(0.8), jnp.float32(0.6))
  e00, ei0, eit = (
    np.asarray(Product()(xt, None, each), np.float64)
    for each in (none, image, both)
  )
  expected = e00 + 1.5 * (ei0 - e00) + 7.5 * (eit - ei0)
  np.testing.assert_allclose(denoise(xt, level).x0, expected, rtol=1e-4)


def test_the_three_outputs_and_their_combination(engine):
  bare, image, both = (
    sampled(engine, *scales) for scales in ((0, 0), (1, 0), (1, 1))
  )
  others = {"images": 255 - IMAGES, "label": 2}
  np.testing.assert_allclose(bare, sampled(engine, 0, 0, **others), rtol=1e-6)
  unlabelled = sampled(engine, 1, 0, label=2)
  np.testing.assert_allclose(image, unlabelled, rtol=1e-6)
  assert np.abs(image - sampled(engine, 1, 0, 255 - IMAGES)).max() > 0.1
  assert np.abs(both - sampled(engine, 1, 1, label=2)).max() > 0.01
  expected = bare + 1.5 * (image - bare) + 4 * (both - image)
  np.testing.assert_allclose(sampled(engine, 1.5, 4), expected, rtol=1e-3)
  joint = bare + 3 * (both - bare)
  np.testing.assert_allclose(sampled(engine, 3, 3), joint, rtol=1e-3)


def test_without_guidance_towards_the_image_it_is_on_both_sides(engine):
  """As in a model whose training never dropped it, bit for bit."""
  parts = (MODEL.conditioners[0], SourceImage("source", 0.0, 0.0))
  model = dataclasses.replace(MODEL, conditioners=parts)
  sharding = MeshShape().build(jax.devices()[:1])
  kept = SamplingEngine(model, PARAMS, sharding)
  np.testing.assert_array_equal(sampled(engine, 1, 4), sampled(kept, 1, 4))


def test_other_scales_compile_nothing(engine):
  sampled(engine, 1.5, 4)
  compiled = engine._chunk._jitted._cache_size()
  sampled(engine, 1.2, 6.5)
  sampled(engine, 1.7, 1)
  assert engine._chunk._jitted._cache_size() == compiled


def test_the_latents_of_the_image_have_no_scale():
  """The scale 0.5 is that of x_t, not of what is concatenated with it."""
  raw = {"label": np.zeros(2, np.int32), "source": jnp.asarray(IMAGES)}
  found = prepare_inputs(MODEL, PARAMS, raw, None)["source"]
  np.testing.assert_allclose(found, IMAGES / 127.5 - 1, atol=1e-6)
  codec = SamplingEngine(MODEL, PARAMS, MeshShape().build()).codec
  np.testing.assert_allclose(
    codec.unscaled(codec.encode(IMAGES)), found, atol=1e-6
  )


def test_editing_starts_from_noise_without_strength(engine):
  """At strength 1 nothing but the condition depends on the image."""
  bare = sampled(engine, 0, 0)
  again = sampled(engine, 0, 0, 255 - IMAGES)
  np.testing.assert_allclose(bare, again, rtol=1e-6)
  partly = sampled(engine, 0, 0, 255 - IMAGES, steps=2, strength=0.5)
  assert np.abs(bare - partly).max() > 0.1


def test_conditions_are_dropped_alone_and_together():
  """5 % the text, 5 % the image, and 5 % both, with rare coincidences."""
  parts = (ClassEmbedder(3, 8, drop_rate=0.05), SourceImage())
  model = dataclasses.replace(MODEL, conditioners=parts)
  key, *keys = jax.random.split(jax.random.key(0), 3)
  drop = draw_drops(model, key, keys, 40_000)
  text, image = np.asarray(drop["label"]), np.asarray(drop["source"])
  fractions = [(text & ~image).mean(), (image & ~text).mean()]
  np.testing.assert_allclose(fractions, 0.05 * 0.95**2, atol=0.005)
  np.testing.assert_allclose((text & image).mean(), 0.0524, atol=0.005)


def pipe_of(*parts):
  model = dataclasses.replace(MODEL, conditioners=parts)
  return Pipeline(LoadedModel(model, PARAMS, None, SIDE, SIDE))


def test_requests_without_an_image_or_with_a_scale_for_other_models():
  with pytest.raises(ConfigError, match=r"edits an image; .*--image"):
    pipe_of(*MODEL.conditioners).prepare(class_label=1)
  with pytest.raises(ConfigError, match="image_guidance_scale"):
    pipe_of(MODEL.conditioners[0]).prepare(image_guidance_scale=1.5)


def scales(**fields):
  generation = pipe_of(*MODEL.conditioners).prepare(
    class_label=1, image=IMAGES[0], **fields
  )
  config = generation.config
  return config.guidance.scale, config.image_guidance.scale


def test_default_scales_and_those_of_diffusers():
  assert scales() == (3.0, 1.5)
  assert scales(guidance=7, image_guidance_scale=1.2) == (7, 1.2)
  assert scales(guidance=7, compat="diffusers") == (7, 1.5)
  # Without guidance towards the text, or less than none towards the image,
  # diffusers evaluates the network once.
  assert scales(guidance=1, compat="diffusers") == (1, 1)
  given = {"guidance": 7, "image_guidance_scale": 0.9}
  assert scales(compat="diffusers", **given) == (1, 1)
  assert scales(**given) == (7, 0.9)


EIGHT = Inputs(channels=8, context=768)


@pytest.mark.parametrize("kind", ["", "XL"])
def test_a_pipelines_class_says_what_eight_channels_are(kind):
  index = {"_class_name": f"StableDiffusion{kind}InstructPix2PixPipeline"}
  assert concat_conditioners(index, EIGHT, 4, 8) == [SourceImage()]
  assert concat_conditioners({}, EIGHT, 4, 8) == [SourceImage()]
  other = {"_class_name": "MarigoldDepthPipeline"}
  assert concat_conditioners(other, EIGHT, 4, 8) == []
  nine = EIGHT._replace(channels=9)
  assert concat_conditioners(index, nine, 4, 8) == [MaskedImage()]
  with pytest.raises(ConfigError, match="is_cosxl_edit"):
    concat_conditioners(index | {"is_cosxl_edit": True}, EIGHT, 4, 8)


def test_guidance_0_says_that_it_is_the_unconditional_model(caplog):
  """diffusers' guidance_scale=0, as for SD-Turbo, is guidance 1 here."""
  pipe = pipe_of(MODEL.conditioners[0])
  generation = pipe.prepare(class_label=1, guidance=0)
  assert generation.config.guidance.scale == 0
  assert "diffusers' guidance_scale=0" in caplog.text
  caplog.clear()
  generation = pipe.prepare(class_label=1, guidance=0, compat="diffusers")
  assert generation.config.guidance.scale == 1
