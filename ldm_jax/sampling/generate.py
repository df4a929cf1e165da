"""Behind sample.py: a model and flags become pictures or latents."""

import argparse
import dataclasses
import logging
import os
from typing import Any

import numpy as np

from ldm_jax.cli.exit_codes import usage_errors
from ldm_jax.data.annotations import read_boxes
from ldm_jax.data.text.prompt_cleaning import clean_prompt
from ldm_jax.errors import ConfigError
from ldm_jax.loaded_model import LoadedModel, skip_blocks
from ldm_jax.nn.conditioners.conditioner import ConcatConditioner
from ldm_jax.nn.conditioners.embedders import ClassEmbedder
from ldm_jax.nn.conditioners.spatial import DepthMap
from ldm_jax.nn.encoder_unet import EncoderUNet
from ldm_jax.pretrained.open_model import LoadOptions, open_model, with_control
from ldm_jax.runtime.devices import processes
from ldm_jax.runtime.devices.sharding import MeshShape, Sharding
from ldm_jax.sampling import GenerationInputs, SamplingConfig, SamplingEngine
from ldm_jax.sampling.condition_inputs import (
  open_classifier,
  read_depth,
  read_neighbours,
  read_segmap,
)
from ldm_jax.sampling.conditioning import ConditionInputs, encode_conditions
from ldm_jax.sampling.image_inputs import ImageFlags
from ldm_jax.sampling.outputs import (
  GenerationJob,
  write_latents,
  write_pictures,
)
from ldm_jax.sampling.resolve_request import noise_of, prompts_of, settings_of

logger = logging.getLogger(__name__)


def generate(flags: argparse.Namespace) -> int:
  """Draws what the flags ask for; returns the exit code."""
  with usage_errors():
    processes.initialize()
    job = _job(flags)
    array = os.path.join(flags.out, "latents.npy")
    if job.order.output == "latents" and os.path.exists(array):
      raise ConfigError(f"{array} is there already; choose another --out")
  os.makedirs(flags.out, exist_ok=True)
  if job.order.output == "latents":
    write_latents(array, job.inverted() if flags.invert else job.drawn())
  else:
    write_pictures(flags, job)
  return 0


def _job(flags: argparse.Namespace) -> GenerationJob:
  """Everything that may be wrong with the flags is found here.

  Raises:
    ValueError: it is.
  """
  given = ImageFlags(flags)
  prompts, toward = prompts_of(flags)
  if flags.negative_prompt:  # it is written into pictures, too
    flags.negative_prompt = clean_prompt(flags.negative_prompt, logger.warning)
  opened = open_model(flags.model, LoadOptions.told(flags))
  if flags.clip_skip is not None:
    opened = skip_blocks(opened, flags.clip_skip - 1)
  if flags.controlnet is not None:
    opened = with_control(opened, flags.controlnet, flags.dtype)
  _refuse(opened, flags.invert)
  settings = settings_of(flags, opened, given.size(opened))
  count = len(prompts) or flags.interpolate or flags.num
  noises = count
  if flags.interpolate is not None:
    noises = 2 if toward is None else 1  # the ends of the way
  order = GenerationInputs(
    count,
    flags.batch,
    noise_of(flags, settings, opened, noises),
    "latents" if flags.output == "latent" else "images",
    given.given(settings, opened, count),
    flags.variation,
  )
  sharding, classifier = MeshShape().build(), None
  if flags.classifier:
    classifier = _classifier(flags, opened, sharding)
    label = flags.class_label
    labels = None if label is None else np.full(count, label)
    order = dataclasses.replace(order, labels=labels)
  studio = SamplingEngine(opened.model, opened.params, sharding, classifier)
  studio.check_memory(settings, order)
  # Both ends are heard at once, so that they get the same length.
  texts = prompts if toward is None else prompts + [toward] * count
  request = _request(flags, opened, settings, texts, max(count, len(texts)))
  positive, negative = encode_conditions(opened, request)
  if flags.interpolate:
    order = dataclasses.replace(
      order,
      fractions=np.linspace(0, 1, count),
      end=None
      if toward is None
      else positive.rows(np.arange(count, 2 * count)),
    )
  studio.check(settings, order)
  return GenerationJob(
    studio, settings, order, positive, negative, prompts, toward
  )


def _request(
  flags: argparse.Namespace,
  opened: LoadedModel,
  settings: SamplingConfig,
  texts: list[str],
  count: int,
) -> ConditionInputs:
  """What is to be heard."""
  size = settings.height, settings.width
  hears_class = not flags.classifier or opened.model.find_conditioner(
    ClassEmbedder
  )
  return ConditionInputs(
    texts,
    [flags.negative_prompt] * count,
    flags.class_label if hears_class else None,
    *size,
    flags.emphasis,
    flags.segmap and read_segmap(flags.segmap, *size),
    flags.layout and read_boxes(flags.layout),
    flags.neighbours and read_neighbours(flags.neighbours),
    flags.depth and read_depth(flags.depth, *size),
  )


def _classifier(
  flags: argparse.Namespace, opened: LoadedModel, sharding: Sharding
) -> tuple[EncoderUNet, Any]:
  """The classifier that is to lead, which knows the class."""
  scale = float(opened.params.latent_scale)
  module, params = open_classifier(flags.classifier, scale, sharding)
  if not 0 <= (flags.class_label or 0) < module.classes:
    raise ConfigError(
      f"--class_label must be 0 to {module.classes - 1}, got "
      f"{flags.class_label}"
    )
  return module, params


def _refuse(opened: LoadedModel, is_inverting: bool) -> None:
  """Raises ConfigError for a U-Net that reads what nobody gives it."""
  beside = [
    p for p in opened.model.conditioners if isinstance(p, ConcatConditioner)
  ]
  if is_inverting and beside:
    raise ConfigError(
      f"--invert leads a picture back to noise, but this model reads "
      f"{beside[0].input_key!r} beside it; use a model of text or classes"
    )
  channels = opened.model.first_stage.latent_channels
  is_fed = beside or opened.model.find_conditioner(DepthMap)
  if opened.inputs not in (None, channels) and not is_fed:
    raise ConfigError(
      f"this model's U-Net reads {opened.inputs} channels, {channels} of them "
      "latents, and is not of the inpainting, upscaling or depth kind; use the "
      " U-Net alone from Python (ldm_jax.from_pretrained)"
    )
