"""Behind sample.py: a model and flags become pictures or latents."""

import argparse
import dataclasses
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

import ldm_jax
from ldm_jax.commands.doors import usage
from ldm_jax.commands.models import Reading, open_model
from ldm_jax.diffusion import samplers
from ldm_jax.diffusion.torch_noise import torch_normal
from ldm_jax.loop import say
from ldm_jax.nodes import ConfigError
from ldm_jax.opened import Opened, Request, hear, skip_blocks
from ldm_jax.runtime import pictures
from ldm_jax.runtime.sharding import MeshShape
from ldm_jax.sampling import Order, Said, Settings, Studio
from ldm_jax.weights.mapped import replacing

ETA = {"ddim": 0.0, "ddpm": 1.0}  # what the papers do


def draw(flags: argparse.Namespace) -> int:
  """Draws what the flags ask for; returns the exit code."""
  with usage():
    opened = open_model(flags.model, Reading.told(flags))
    if flags.clip_skip is not None:
      opened = skip_blocks(opened, flags.clip_skip - 1)
    settings = _settings(flags, opened)
    prompts = [text for text in flags.prompt for _ in range(flags.num)]
    count = len(prompts) or flags.num
    order = Order(
      count,
      flags.batch,
      _noise(flags, settings, opened, count),
      "latents" if flags.output == "latent" else "images",
    )
    positive, negative = hear(
      opened,
      Request(
        prompts,
        [flags.negative_prompt] * count,
        flags.class_label,
        settings.height,
        settings.width,
      ),
      say,
    )
    studio = Studio(opened.model, opened.params, MeshShape().build())
    studio.check(settings, order)
    os.makedirs(flags.out, exist_ok=True)
    array = os.path.join(flags.out, "latents.npy")
    if order.output == "latents" and os.path.exists(array):
      raise ConfigError(f"{array} is there already; choose another --out")
  drawn = _progress(studio, settings, positive, negative, order)
  if order.output == "latents":
    latents = np.concatenate(list(drawn))
    with replacing(array) as file:
      np.save(file, latents)
    print(array)
    return 0
  _write_pictures(flags, settings, prompts, drawn)
  return 0


def _progress(
  studio: Studio,
  settings: Settings,
  positive: Said,
  negative: Said,
  order: Order,
) -> Iterator[np.ndarray]:
  """What the studio draws, with a bar of steps."""
  batches = -(-order.count // order.batch)
  with tqdm(total=batches * settings.steps, unit="step") as bar:
    yield from studio.draw(settings, positive, negative, order, bar.update)


def _write_pictures(
  flags: argparse.Namespace,
  settings: Settings,
  prompts: Sequence[str],
  drawn: Iterator[np.ndarray],
) -> None:
  """Numbered PNGs, each as soon as it is there, and a grid of them."""
  first, images = _next_number(flags.out), []
  for image in (image for batch in drawn for image in batch):
    index = len(images)
    text = prompts[index] if prompts else ""
    told = None if flags.no_metadata else _told(flags, settings, text, index)
    path = os.path.join(flags.out, f"{first + index:05d}.png")
    pictures.write_png(path, image, told)
    print(path, flush=True)
    images.append(image)
  sheet = pictures.grid(np.stack(images), prompts)
  name = f"grid_{first:05d}.png" if first else "grid.png"
  pictures.write_png(os.path.join(flags.out, name), sheet)
  print(os.path.join(flags.out, name))


def _settings(flags: argparse.Namespace, opened: Opened) -> Settings:
  eta = ETA[flags.sampler] if flags.eta is None else flags.eta
  guidance = opened.guidance if flags.guidance is None else flags.guidance
  if flags.num < 1 or flags.batch < 1:
    raise ConfigError(
      f"--num and --batch must be 1 or more, got {flags.num} and {flags.batch}"
    )
  if not (math.isfinite(guidance) and eta >= 0 and math.isfinite(eta)):
    raise ConfigError(
      f"--guidance must be a number and --eta 0 or more, got {guidance} and "
      f"{eta}"
    )
  settings = Settings(
    height=flags.height or opened.height,
    width=flags.width or opened.width,
    steps=flags.steps,
    guidance=guidance,
    sampler=flags.sampler,
    grid=flags.grid,
    eta=eta,
    seed=flags.seed,
    landing=opened.landing,
  )
  model = opened.model
  model.first_stage.latent_shape(settings.height, settings.width)
  samplers.times(settings.steps, settings.grid, model.schedule.steps)
  channels = model.first_stage.latent_channels
  if opened.inputs not in (None, channels):
    raise ConfigError(
      f"this model's U-Net reads {opened.inputs} channels, {channels} of them "
      "latents: it changes images given to it, which sample.py cannot give it; "
      "use the U-Net alone from Python (ldm_jax.from_pretrained)"
    )
  return settings


def _noise(
  flags: argparse.Namespace, settings: Settings, opened: Opened, count: int
) -> np.ndarray | None:
  """x_T where the flags say whence: a file, or torch's generator."""
  if flags.initial_latents is not None:
    if flags.rng == "torch":
      raise ConfigError("--initial_latents replace --rng; give one of them")
    return _read_array(flags.initial_latents)
  if flags.rng != "torch":
    return None
  if settings.eta:
    raise ConfigError(
      "--rng torch draws the first latents only, and this sampler draws more; "
      "use --sampler ddim --eta 0"
    )
  shape = opened.model.first_stage.latent_shape(settings.height, settings.width)
  height, width, channels = shape
  drawn = torch_normal(settings.seed, (count, channels, height, width))
  return drawn.transpose(0, 2, 3, 1)


def _read_array(path: str) -> np.ndarray:
  """The array of an .npy file; no code in it is run.

  Raises:
    ConfigError: it is missing, damaged, or not of finite numbers.
  """
  try:
    array = np.load(path, allow_pickle=False)
  except (OSError, ValueError, EOFError) as error:
    raise ConfigError(f"--initial_latents {path!r}: {error}") from error
  is_numbers = isinstance(array, np.ndarray) and array.dtype.kind == "f"
  if not is_numbers or array.ndim != 4 or not np.isfinite(array).all():
    raise ConfigError(
      f"--initial_latents {path!r} must hold finite floats of shape "
      "(images, height, width, channels)"
    )
  return array


def _next_number(folder: str) -> int:
  """One more than the largest number of a PNG in `folder`."""
  stems = (os.path.splitext(name)[0] for name in os.listdir(folder))
  return max((int(stem) for stem in stems if stem.isdigit()), default=-1) + 1


def _told(
  flags: argparse.Namespace, settings: Settings, prompt: str, index: int
) -> dict[str, str]:
  """What a PNG says of itself: all of it, and in words that others read."""
  told = {
    "prompt": prompt,
    "negative_prompt": flags.negative_prompt,
    "class_label": flags.class_label,
    "index": index,
    "model": flags.model,
    "clip_skip": flags.clip_skip,
    "lora": flags.lora,
    "embedding": flags.embedding,
    "rng": flags.rng,
    "ldm_jax": ldm_jax.__version__,
  }
  told |= dataclasses.asdict(settings)
  return {"parameters": _parameters(told), "ldm_jax": json.dumps(told)}


def _parameters(told: Mapping[str, Any]) -> str:
  """The text that A1111's web UI writes, and ComfyUI and Civitai read."""
  model = os.path.basename(os.path.normpath(told["model"]))
  pairs = {
    "Steps": told["steps"],
    "Sampler": told["sampler"].upper(),
    "CFG scale": f"{told['guidance']:g}",
    "Seed": told["seed"],
    "Size": f"{told['width']}x{told['height']}",
    "Model": json.dumps(model) if "," in model else model,
    "Clip skip": told["clip_skip"],
    "Version": f"ldm_jax {told['ldm_jax']}",
  }
  lines = [told["prompt"]]
  if told["negative_prompt"]:
    lines.append(f"Negative prompt: {told['negative_prompt']}")
  said = (f"{k}: {v}" for k, v in pairs.items() if v is not None)
  return "\n".join([*lines, ", ".join(said)])
