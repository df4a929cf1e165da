"""Every published experiment is a config of the exact size, and trains.

The counts were taken from the reference implementations (CompVis
latent-diffusion and stable-diffusion, Stability generative-models) built on
torch's meta device.
"""

import dataclasses
import functools
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import random_like, random_state

from ldm_jax import config
from ldm_jax.concat_conditioning import prepare_inputs
from ldm_jax.diffusion.schedule import Schedule
from ldm_jax.latent_diffusion import Parameters
from ldm_jax.nn.autoencoder import Autoencoder, ConvStack
from ldm_jax.nn.bottleneck import VectorQuantizer
from ldm_jax.nn.conditioners.clip_embedder import ClipEmbedder
from ldm_jax.nn.conditioners.embedders import (
  ClassEmbedder,
  LayoutEmbedder,
  SizeEmbedder,
  TextEmbedder,
  merge,
)
from ldm_jax.nn.conditioners.spatial import (
  DepthMap,
  LowResolution,
  MaskedImage,
  NeighbourEmbeddings,
  SegmentationEmbedder,
)
from ldm_jax.nn.conditioners.t5_embedder import T5Embedder
from ldm_jax.nn.discriminator import PatchDiscriminator
from ldm_jax.nn.dit.dit import DiT
from ldm_jax.nn.encoders.clip_text import ClipText
from ldm_jax.nn.encoders.lpips import LPIPS
from ldm_jax.nn.encoders.text_encoder import TextEncoder
from ldm_jax.nn.flux.flux import Flux
from ldm_jax.nn.mmdit.mmdit import MMDiT
from ldm_jax.nn.unet import UNet
from ldm_jax.training.autoencoder import AutoencoderTask
from ldm_jax.training.classifier import ClassifierTask
from ldm_jax.training.denoiser import DenoiserTask, Frozen
from ldm_jax.training.first_stage.feature_alignment import FeatureAlignment

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"

STAGES = {
  "ldm/kl_f4": 55_312_063,
  "ldm/kl_f8": 83_653_863,
  "ldm/kl_f16": 69_610_963,
  "ldm/kl_f32": 103_880_131,
  "ldm/vq_f4": 55_322_782,
  "ldm/vq_f4_noattn": 53_219_486,
  "ldm/vq_f8": 67_717_295,
  "ldm/vq_f8_n256": 67_652_783,
  "ldm/vq_f16": 69_593_371,
  "sd/kl_f4_z4": 55_325_927,
  "sd/kl_f8_ft_ema": 83_653_863,
  "sd/kl_f8_mse": 83_653_863,
  "first_stages/kl_f8c16": 83_819_683,
  "first_stages/kl_f16c16": 69_610_963,
  "first_stages/vavae_f16c32": 69_836_067,
}
# LDM's text encoders have an unused last layer, width x ids + ids.
BERT = {
  w: c - (w + 1) * 30_522 for w, c in ((640, 186_154_682), (1280, 581_994_042))
}
CLIP_L, CLIP_H, CLIP_G = 123_060_480, 352_984_064, 694_659_840
T5_XXL = 4_762_310_656
# SD 3's: CLIP_L with a projection.
TEXTS = CLIP_L + 768 * 768 + CLIP_G + T5_XXL
FACE = 274_056_163
# config: parameters of the U-Net and of the conditioners
DIFFUSIONS = {
  "ldm/celeba256": (FACE, 0),
  "ldm/ffhq256": (FACE, 0),
  "ldm/lsun_bedrooms256": (FACE, 0),
  "ldm/lsun_churches256": (294_966_916, 0),
  "ldm/imagenet256_f8": (394_984_196, 1001 * 512),
  "ldm/imagenet256_f4": (400_920_579, 1001 * 512),
  "ldm/text2img256": (403_623_939, BERT[640]),
  "ldm/text2img_1p4b": (872_300_484, BERT[1280]),
  "ldm/layout_open_images256": (246_277_379, 58_858_496 - 513 * 8192),
  "ldm/semantic256": (215_229_315, 546),
  "ldm/semantic512": (215_229_315, 546),
  "ldm/super_resolution": (113_622_563, 0),
  "ldm/inpainting": (387_245_827, 0),
  "ldm/retrieval768": (1_335_480_400, 0),
  "sd/sd1": (859_520_964, CLIP_L),
  "sd/sd1_inpainting": (859_535_364, CLIP_L),
  "sd/sd2_base": (865_910_724, CLIP_H),
  "sd/sd2_v768": (865_910_724, CLIP_H),
  "sd/sd2_inpainting": (865_925_124, CLIP_H),
  "sd/sd2_depth": (865_913_604, CLIP_H),
  "sd/x4_upscaler": (473_398_020, CLIP_H),
  "sd/sdxl_base": (2_567_463_684, CLIP_L + CLIP_G),
  "sd/sdxl_refiner": (2_259_526_660, CLIP_G),
  # With the fixed positions, of 192 or 384 rows and columns.
  "sd/sd3_medium": (2_028_328_000 + 192 * 1536, TEXTS),
  "sd/sd35_medium": (2_243_171_520 + 384 * 1536, TEXTS),
  "sd/sd35_large": (8_056_627_520 + 192 * 2432, TEXTS),
  # Of 675,129,632; the rest are fixed positions.
  "dit/imagenet256_dit_xl2": (673_681_568, 1001 * 1152),
  "dit/imagenet256_sit_xl2": (673_681_568, 1001 * 1152),
  "flux/mlperf_flux1": (11_891_178_560, CLIP_L + T5_XXL),
  "flux/flux1_dev": (11_901_408_320, CLIP_L + T5_XXL),
  "flux/flux1_schnell": (11_891_178_560, CLIP_L + T5_XXL),
}
CLASSIFIERS = ("ldm/imagenet256_f8_classifier",)
# Tensors of a U-Net, by torch's count.
TENSORS = {"sd/sd1": 686, "sd/sdxl_base": 1680}
FOLDERS = ("ldm", "sd", "first_stages", "dit", "flux")
EVERY = (*STAGES, *DIFFUSIONS, *CLASSIFIERS)


@functools.cache
def experiment(name):
  return config.load(str(CONFIGS / f"{name}.py"))


def stage_of(made):
  """The autoencoder of the config that a second stage's run is of."""
  name = made.first_stage.removeprefix("runs/")
  (path,) = (p for p in STAGES if p.endswith(f"/{name}"))
  return experiment(path).task.autoencoder


@functools.cache
def stage_shapes(stage, side):
  images = jnp.zeros((1, side, side, 3))
  latents = jnp.zeros((1, *stage.latent_shape(side, side)))
  return jax.eval_shape(stage.init, jax.random.key(0), images, latents)


@functools.cache
def module_shapes(module, *inputs):
  """Shapes of (output, variables), traced once for equal modules."""
  return jax.eval_shape(module.init_with_output, jax.random.key(0), *inputs)


def scanned(module):
  """The same parameters, of which one block is traced in place of all."""
  if hasattr(module, "is_scanned"):
    return module.clone(is_scanned=True)
  if isinstance(module, T5Embedder):
    return module.clone(encoder=scanned(module.encoder))
  return module


def conditioners_inputs(task, given, frozen):
  """What the conditioners read of a batch."""
  params = Parameters(frozen.first_stage, frozen.latent_scale, None, None)
  noise = task.draw(jax.random.key(0), given).noise_augmentation
  return prepare_inputs(task.model, params, given, noise)


def zeros(shapes):
  return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def count(tree):
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def batch(task, side, rows):
  """Random arrays for everything that the conditioners read."""
  rng = np.random.default_rng(0)
  whole = lambda most, *shape: rng.integers(0, most, shape)
  made = {"image": whole(256, rows, side, side, 3).astype(np.uint8)}
  small = side // task.first_stage.stride
  for part in getattr(getattr(task, "model", None), "conditioners", ()):
    match part:
      case ClassEmbedder():
        made["label"] = whole(part.classes, rows).astype(np.int32)
      case TextEmbedder() | LayoutEmbedder():
        ids = whole(part.encoder.vocabulary, rows, part.encoder.length)
        made[part.input_key] = ids.astype(np.int32)
      case ClipEmbedder():
        ids = whole(part.encoders[0].vocabulary, rows, 77)
        made["tokens"] = ids.astype(np.int32)
      case T5Embedder():
        ids = whole(part.encoder.vocabulary, rows, part.length)
        made[part.input_key] = ids.astype(np.int32)
      case SizeEmbedder():
        made["sizes"] = rng.random((rows, part.count)).astype(np.float32)
      case SegmentationEmbedder():
        segmap = whole(part.classes, rows, side, side)
        made["segmap"] = segmap.astype(np.uint8)
      case MaskedImage():
        made["mask"] = rng.random((rows, side, side)) < 0.5
      case DepthMap():
        made["depth"] = rng.random((rows, side, side)).astype(np.float32)
      case LowResolution():
        made["low"] = whole(256, rows, small, small, 3).astype(np.uint8)
      case NeighbourEmbeddings():
        rows_of = rng.standard_normal((rows, 3, part.width))
        made["neighbours"] = rows_of.astype(np.float32)
  if isinstance(task, ClassifierTask):
    made["label"] = whole(task.classifier.classes, rows).astype(np.int32)
  return made


@pytest.mark.parametrize("name", STAGES)
def test_first_stages_have_their_size(name):
  autoencoder = experiment(name).task.autoencoder
  shapes = stage_shapes(autoencoder, autoencoder.stride)
  assert count(shapes) == STAGES[name]


@pytest.mark.parametrize("name", DIFFUSIONS)
def test_second_stages_have_their_size(name):
  made = experiment(name)
  task = made.task.with_first_stage(stage_of(made))
  side = task.model.size_multiple
  given = batch(task, side, 1)
  frozen = Frozen(stage_shapes(task.first_stage, side), jnp.float32(1.0))
  raw = jax.eval_shape(
    functools.partial(conditioners_inputs, task), given, frozen
  )
  drop = jax.ShapeDtypeStruct((1,), bool)
  made = [
    module_shapes(scanned(part), raw[part.input_key], drop)
    for part in task.model.conditioners
  ]
  condition = jax.eval_shape(
    lambda: merge([zeros(output) for output, _ in made])
  )
  latents = jax.ShapeDtypeStruct(task._latent_shape(given), jnp.float32)
  t = jax.ShapeDtypeStruct((1,), jnp.float32)
  _, unet = module_shapes(scanned(task.model.unet), latents, t, condition)
  found = count(unet), count([variables for _, variables in made])
  assert found == DIFFUSIONS[name]
  tensors = len(jax.tree.leaves(unet))
  assert tensors == TENSORS.get(name, tensors)


def test_every_published_experiment_is_checked():
  found = {
    str(path.relative_to(CONFIGS).with_suffix(""))
    for folder in FOLDERS
    for path in (CONFIGS / folder).glob("*.py")
  }
  assert found == {*EVERY, *(f"{folder}/base" for folder in FOLDERS)}


@pytest.mark.parametrize("name", EVERY)
def test_docstrings_state_what_was_published(name):
  text = (CONFIGS / f"{name}.py").read_text()
  text = text[: text.index('"""', 3)]
  assert "published" in text or "figure" in text or "FID" in text
  assert "parameters" in text or "rFID" in text or "authors" in text


# In small: the same trees of classes, every width cut down, and of a U-Net the
# two innermost levels left.


def small(node):
  """A config's module with the least widths that still divide."""
  match node:
    case UNet():  # and half of one
      plan = node.attention
      plan = dataclasses.replace(
        plan,
        depths=tuple(min(d, 1) for d in plan.depths[-2:]),
        cross_only=plan.cross_only[-2:],
        mid_depth=1,
        head_width=plan.head_width and 4,
      )
      return node.clone(
        channels=16,
        multipliers=node.multipliers[-2:],
        blocks=1,
        groups=4,
        attention=plan,
      )
    case DiT():
      return node.clone(width=16, depth=2, heads=2)
    case MMDiT():
      dual = node.dual_blocks[:1]
      return node.clone(width=16, depth=3, heads=2, dual_blocks=dual)
    case Flux():
      node = node.clone(double_depth=1, single_depth=1)
      return node.clone(width=16, heads=2, axes=(2, 2, 4))
    case ConvStack():
      return dataclasses.replace(node, channels=4, blocks=1, groups=4)
    case Autoencoder():
      bottleneck = node.bottleneck
      if isinstance(bottleneck, VectorQuantizer):
        bottleneck = bottleneck.clone(codes=16)
      return node.clone(trunk=small(node.trunk), bottleneck=bottleneck)
    case TextEncoder():
      return node.clone(width=16, depth=1, heads=2, head_width=8)
    case ClipText():
      return node.clone(
        width=16, depth=2, heads=2, projection=node.projection and 16
      )
    case TextEmbedder() | LayoutEmbedder():
      return node.clone(encoder=small(node.encoder))
    case ClipEmbedder():
      width = node.context_width and 32
      encoders = tuple(map(small, node.encoders))
      return node.clone(encoders=encoders, context_width=width)
    case T5Embedder():
      encoder = node.encoder.clone(
        width=32, depth=1, heads=2, head_width=8, hidden=16
      )
      return node.clone(encoder=encoder)
    case ClassEmbedder():
      return node.clone(width=16)
    case PatchDiscriminator():
      return node.clone(width=8)
    case FeatureAlignment():
      encoder = node.encoder.clone(size=4, patch=2, width=8, depth=1, heads=1)
      return dataclasses.replace(node, encoder=encoder)
  return node


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_every_published_experiment_learns(name):
  """Two steps in one compilation: warm-ups begin with a rate of nought."""
  made = experiment(name)
  task, key = made.task, jax.random.key(0)
  if isinstance(task, AutoencoderTask):
    side = 4 * task.autoencoder.stride
    side = max(side, 64)
    task = dataclasses.replace(
      task,
      autoencoder=small(task.autoencoder),
      discriminator=small(task.discriminator),
      perceptual=None,
      disc_start=0,
      regularizers=tuple(map(small, task.regularizers)),
    )
    given = {"image": np.zeros((2, side, side, 3), np.uint8)}
    given["image"][:] = np.random.default_rng(1).integers(0, 256, side)[:, None]
    frozen = random_like(task.frozen_shapes(given))
  else:
    task = task.with_first_stage(small(stage_of(made)))
    if isinstance(task, DenoiserTask):
      model = dataclasses.replace(
        task.model,
        unet=small(task.model.unet),
        conditioners=tuple(map(small, task.model.conditioners)),
      )
      task = dataclasses.replace(task, model=model)
      side = 2 * model.size_multiple
    else:
      half = small(task.classifier)
      task = dataclasses.replace(task, classifier=half)
      side = task.first_stage.stride * 2 ** len(half.multipliers)
    given = batch(task, side, 2)
    rng = np.random.default_rng(2)
    draw = lambda leaf: np.float32(0.2 * rng.standard_normal(leaf.shape))
    frozen = jax.tree.map(draw, task.frozen_shapes(given))
    frozen = frozen.replace(latent_scale=jnp.float32(1.0))

  @jax.jit
  def learn(initial, given, frozen):
    step = lambda state, key: task.step(state, frozen, given, key)
    state, metrics = jax.lax.scan(step, initial, jax.random.split(key, 2))
    moved = jax.tree.map(
      lambda a, b: (a != b).any(), initial.params, state.params
    )
    return moved, metrics

  moved, metrics = learn(random_state(task, given, frozen), given, frozen)
  assert all(np.isfinite(value).all() for value in metrics.values())
  assert any(jax.tree.leaves(moved))


def test_the_schedules_are_those_of_the_papers():
  """ᾱ at the last time, by the reference's own float64 tables."""
  last = {
    "ldm/celeba256": 0.000142304,
    "ldm/lsun_churches256": 0.000668665,
    "ldm/inpainting": 0.000096911,
    "ldm/retrieval768": 0.000812518,
    "sd/sd1": 0.004660099,
    "sd/x4_upscaler": 0.000733412,
  }
  for name, expected in last.items():
    schedule = experiment(name).task.model.schedule
    assert isinstance(schedule, Schedule)
    assert math.isclose(schedule.alpha_bar[-1], expected, rel_tol=2e-6), name


def test_lpips_is_part_of_every_first_stage():
  for name in STAGES:
    assert isinstance(experiment(name).task.perceptual, LPIPS)
