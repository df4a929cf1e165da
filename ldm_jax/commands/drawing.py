"""Behind sample.py: a model and flags become pictures or latents."""

import argparse
import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

import ldm_jax
from ldm_jax.commands.asking import (
  Pictures,
  noise_of,
  prompts_of,
  settings_of,
)
from ldm_jax.commands.conditions import (
  open_classifier,
  read_depth,
  read_neighbours,
  read_segmap,
)
from ldm_jax.commands.doors import usage
from ldm_jax.commands.models import Reading, open_model, with_control
from ldm_jax.data.annotations import read_boxes
from ldm_jax.hearing import Request, hear
from ldm_jax.loop import say
from ldm_jax.nn.classifier import HalfUNet
from ldm_jax.nn.conditioner import ClassEmbedder
from ldm_jax.nn.conditioners import Beside
from ldm_jax.nn.spatial import DepthMap
from ldm_jax.nodes import ConfigError
from ldm_jax.opened import Opened, skip_blocks
from ldm_jax.runtime import pictures
from ldm_jax.runtime.sharding import MeshShape, Sharding
from ldm_jax.sampling import Order, Said, Settings, Studio
from ldm_jax.weights.mapped import replacing

A1111 = {  # its names where they are not ours in capitals
  "euler": "Euler",
  "euler_ancestral": "Euler a",
  "heun": "Heun",
  "dpm2": "DPM2",
  "dpm2_ancestral": "DPM2 a",
  "dpmpp_2m": "DPM++ 2M",
  "dpmpp_2m_sde": "DPM++ 2M SDE",
  "unipc": "UniPC",
}
SCHEDULES = {
  "karras": "Karras",
  "exponential": "Exponential",
  "sgm_uniform": "SGM Uniform",
  "simple": "Simple",
  "beta": "Beta",
  "kl_optimal": "KL Optimal",
}


@dataclasses.dataclass(frozen=True)
class Job:
  """A studio and what it is to draw."""

  studio: Studio
  settings: Settings
  order: Order
  positive: Said
  negative: Said
  prompts: Sequence[str]
  toward: str | None = None

  def drawn(self) -> Iterator[np.ndarray]:
    """What the studio draws, with a bar of questions to the network."""
    draw, order = self.studio.draw, self.order
    batches = -(-order.count // self.studio.batch(order))
    total = batches * self.studio.questions(self.settings)
    with tqdm(total=total, unit="step") as bar:
      yield from draw(
        self.settings, self.positive, self.negative, order, bar.update
      )

  def inverted(self) -> Iterator[np.ndarray]:
    """The noise that the pictures given come from."""
    images = self.order.given.images[:1]
    latents = self.studio.darkroom.encode(images, tile=self.settings.tile)
    said = self.positive.rows(np.arange(1))
    yield np.asarray(self.studio.invert(self.settings, latents, said))


def draw(flags: argparse.Namespace) -> int:
  """Draws what the flags ask for; returns the exit code."""
  with usage():
    job = _job(flags)
    array = os.path.join(flags.out, "latents.npy")
    if job.order.output == "latents" and os.path.exists(array):
      raise ConfigError(f"{array} is there already; choose another --out")
  os.makedirs(flags.out, exist_ok=True)
  if job.order.output == "latents":
    _write_latents(array, job.inverted() if flags.invert else job.drawn())
  else:
    _write_pictures(flags, job)
  return 0


def _write_latents(path: str, batches: Iterator[np.ndarray]) -> None:
  """All latents as one array; interrupted, those that are finished."""
  finished = []
  try:
    finished.extend(batches)
  finally:
    if finished and jax.process_index() == 0:
      with replacing(path) as file:
        np.save(file, np.concatenate(finished))
      print(path)


def _job(flags: argparse.Namespace) -> Job:
  """Everything that may be wrong with the flags is found here.

  Raises:
    ValueError: it is.
  """
  given = Pictures(flags)
  prompts, toward = prompts_of(flags)
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
  # Both ends are heard at once, so that they get the same length.
  texts = prompts if toward is None else prompts + [toward] * count
  label = flags.class_label
  request = Request(
    texts,
    [flags.negative_prompt] * max(count, len(texts)),
    label if not flags.classifier or opened.model.part(ClassEmbedder) else None,
    settings.height,
    settings.width,
    flags.emphasis,
    flags.segmap and read_segmap(flags.segmap, settings.height, settings.width),
    flags.layout and read_boxes(flags.layout),
    flags.neighbours and read_neighbours(flags.neighbours),
    flags.depth and read_depth(flags.depth, settings.height, settings.width),
  )
  positive, negative = hear(opened, request, say)
  if flags.interpolate:
    order = dataclasses.replace(
      order,
      shares=np.linspace(0, 1, count),
      toward=None
      if toward is None
      else positive.rows(np.arange(count, 2 * count)),
    )
  sharding = MeshShape().build()
  classifier = None
  if flags.classifier:
    classifier = _classifier(flags, opened, sharding)
    labels = None if label is None else np.full(count, label)
    order = dataclasses.replace(order, labels=labels)
  studio = Studio(opened.model, opened.params, sharding, say, classifier)
  studio.check(settings, order)
  return Job(studio, settings, order, positive, negative, prompts, toward)


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


def _write_pictures(flags: argparse.Namespace, job: Job) -> None:
  """Numbered PNGs, each as soon as it is there, and a grid of them.

  Interrupted, what is finished stays, and the grid shows it.
  """
  first, images = _next_number(flags.out), []
  is_writer = jax.process_index() == 0
  try:
    for image in (image for batch in job.drawn() for image in batch):
      index = len(images)
      images.append(image)
      path = os.path.join(flags.out, f"{first + index:05d}.png")
      if is_writer:
        pictures.write_png(path, image, _told(flags, job, index))
        print(path, flush=True)
  finally:
    if images and is_writer:
      sheet = pictures.grid(np.stack(images), job.prompts[: len(images)])
      name = f"grid_{first:05d}.png" if first else "grid.png"
      pictures.write_png(os.path.join(flags.out, name), sheet)
      print(os.path.join(flags.out, name))


def _next_number(folder: str) -> int:
  """One more than the largest number of a PNG in `folder`."""
  stems = (os.path.splitext(name)[0] for name in os.listdir(folder))
  return max((int(stem) for stem in stems if stem.isdigit()), default=-1) + 1


def _told(
  flags: argparse.Namespace, job: Job, index: int
) -> dict[str, str] | None:
  """What a PNG says of itself: all of it, and in words that others read."""
  if flags.no_metadata:
    return None
  told = {
    "prompt": job.prompts[index] if job.prompts else "",
    "negative_prompt": flags.negative_prompt,
    "class_label": flags.class_label,
    "index": index,
    "model": flags.model,
    "clip_skip": flags.clip_skip,
    "lora": flags.lora,
    "embedding": flags.embedding,
    "rng": flags.rng,
    "image": flags.image,
    "mask": flags.mask,
    "outpaint": flags.outpaint,
    "variation": flags.variation,
    "interpolate": flags.interpolate,
    "toward": job.toward,
    "emphasis": flags.emphasis,
    "controlnet": flags.controlnet,
    "control_image": flags.control_image,
    "segmap": flags.segmap,
    "depth": flags.depth,
    "layout": flags.layout,
    "neighbours": flags.neighbours,
    "classifier": flags.classifier,
    "classifier_scale": flags.classifier and flags.classifier_scale,
    "ldm_jax": ldm_jax.__version__,
  }
  settings = dataclasses.asdict(job.settings)
  told |= settings.pop("recipe") | {"guidance": job.settings.guidance.scale}
  told |= {k: v for k, v in settings.items() if k != "guidance"}
  told["guidance_rescale"] = job.settings.guidance.rescale
  told["guidance_interval"] = job.settings.guidance[2:]
  return {"parameters": _parameters(told), "ldm_jax": json.dumps(told)}


def _parameters(told: Mapping[str, Any]) -> str:
  """The text that A1111's web UI writes, and ComfyUI and Civitai read."""
  model = os.path.basename(os.path.normpath(told["model"]))
  pairs = {
    "Steps": told["steps"],
    "Sampler": A1111.get(told["sampler"], told["sampler"].upper()),
    "Schedule type": SCHEDULES.get(told["spacing"]),
    "CFG scale": f"{told['guidance']:g}",
    "Seed": told["seed"],
    "Size": f"{told['width']}x{told['height']}",
    "Model": json.dumps(model) if "," in model else model,
    "Clip skip": told["clip_skip"],
    "Denoising strength": told["strength"] if told["image"] else None,
    "Version": f"ldm_jax {told['ldm_jax']}",
  }
  lines = [told["prompt"]]
  if told["negative_prompt"]:
    lines.append(f"Negative prompt: {told['negative_prompt']}")
  said = (f"{k}: {v}" for k, v in pairs.items() if v is not None)
  return "\n".join([*lines, ", ".join(said)])
