"""Behind sample.py: a model and flags become pictures or latents."""

import argparse
import dataclasses
import os
from typing import Any

import numpy as np

from ldm_jax.commands.asking import noise_of, prompts_of, settings_of
from ldm_jax.commands.conditions import (
  open_classifier,
  read_depth,
  read_neighbours,
  read_segmap,
)
from ldm_jax.commands.doors import usage
from ldm_jax.commands.jobs import Job, write_latents, write_pictures
from ldm_jax.commands.models import Reading, open_model, with_control
from ldm_jax.commands.showing import Pictures
from ldm_jax.data.annotations import read_boxes
from ldm_jax.data.wording import cleaned
from ldm_jax.hearing import Request, hear
from ldm_jax.nn.classifier import HalfUNet
from ldm_jax.nn.conditioner import ClassEmbedder
from ldm_jax.nn.conditioners import Beside
from ldm_jax.nn.spatial import DepthMap
from ldm_jax.nodes import ConfigError
from ldm_jax.opened import Opened, skip_blocks
from ldm_jax.runtime import processes
from ldm_jax.runtime.sharding import MeshShape, Sharding
from ldm_jax.runtime.speech import say
from ldm_jax.sampling import Order, Settings, Studio


def draw(flags: argparse.Namespace) -> int:
  """Draws what the flags ask for; returns the exit code."""
  with usage():
    processes.join()
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


def _job(flags: argparse.Namespace) -> Job:
  """Everything that may be wrong with the flags is found here.

  Raises:
    ValueError: it is.
  """
  given = Pictures(flags)
  prompts, toward = prompts_of(flags)
  if flags.negative_prompt:  # it is written into pictures, too
    flags.negative_prompt = cleaned(flags.negative_prompt, say)
  opened = open_model(flags.model, Reading.told(flags))
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
  order = Order(
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
  studio = Studio(opened.model, opened.params, sharding, say, classifier)
  studio.check_room(settings, order)
  # Both ends are heard at once, so that they get the same length.
  texts = prompts if toward is None else prompts + [toward] * count
  request = _request(flags, opened, settings, texts, max(count, len(texts)))
  positive, negative = hear(opened, request, say)
  if flags.interpolate:
    order = dataclasses.replace(
      order,
      shares=np.linspace(0, 1, count),
      toward=None
      if toward is None
      else positive.rows(np.arange(count, 2 * count)),
    )
  studio.check(settings, order)
  return Job(studio, settings, order, positive, negative, prompts, toward)


def _request(
  flags: argparse.Namespace,
  opened: Opened,
  settings: Settings,
  texts: list[str],
  count: int,
) -> Request:
  """What is to be heard."""
  size = settings.height, settings.width
  hears_class = not flags.classifier or opened.model.part(ClassEmbedder)
  return Request(
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
  flags: argparse.Namespace, opened: Opened, sharding: Sharding
) -> tuple[HalfUNet, Any]:
  """The classifier that is to lead, which knows the class."""
  scale = float(opened.params.latent_scale)
  module, params = open_classifier(flags.classifier, scale, sharding)
  if not 0 <= (flags.class_label or 0) < module.classes:
    raise ConfigError(
      f"--class_label must be 0 to {module.classes - 1}, got "
      f"{flags.class_label}"
    )
  return module, params


def _refuse(opened: Opened, is_inverting: bool) -> None:
  """Raises ConfigError for a U-Net that reads what nobody gives it."""
  beside = [p for p in opened.model.conditioners if isinstance(p, Beside)]
  if is_inverting and beside:
    raise ConfigError(
      f"--invert leads a picture back to noise, but this model reads "
      f"{beside[0].reads!r} beside it; use a model of text or classes"
    )
  channels = opened.model.first_stage.latent_channels
  is_fed = beside or opened.model.part(DepthMap)
  if opened.inputs not in (None, channels) and not is_fed:
    raise ConfigError(
      f"this model's U-Net reads {opened.inputs} channels, {channels} of them "
      "latents, and is not of the inpainting, upscaling or depth kind; use the "
      " U-Net alone from Python (ldm_jax.from_pretrained)"
    )
