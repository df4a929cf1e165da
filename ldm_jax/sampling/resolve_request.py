"""From sample.py's flags to what a studio is told."""

import argparse
import logging
import math
import sys

import numpy as np

from ldm_jax.data.text.prompt_cleaning import clean_prompt
from ldm_jax.diffusion.guidance import ClassifierFreeGuidance
from ldm_jax.diffusion.samplers import SamplerConfig
from ldm_jax.diffusion.samplers.names import (
  parse_sampler_name,
  parse_timestep_spacing,
)
from ldm_jax.diffusion.torch_noise import torch_normal
from ldm_jax.errors import ConfigError
from ldm_jax.loaded_model import LoadedModel
from ldm_jax.nn.conditioners.conditioner import ConcatConditioner
from ldm_jax.sampling import SamplingConfig

logger = logging.getLogger(__name__)

IMAGE_STRENGTH = 0.8  # of --image without a mask
MOST, SEEDS = 1e4, 2**32  # of numbers, and how many seeds there are
NOISE_LEVEL = 20  # of upscaling, as in diffusers
PROMPTS = 100_000  # of one file


def prompts_of(flags: argparse.Namespace) -> tuple[list[str], str | None]:
  """All prompts, each as often as it is to be drawn, and where a way leads.

  Raises:
    ConfigError: the file of prompts cannot be read, or holds none.
    ValueError: a prompt cannot be read; see `cleaned`.
  """
  prompts = list(flags.prompt)
  if flags.prompts_file is not None:
    prompts += _lines(flags.prompts_file)
  prompts = [clean_prompt(text, logger.warning) for text in prompts]
  if "" in prompts:
    logger.warning("an empty prompt says nothing, so guidance leads nowhere")
  if flags.variation is not None and not 0 <= flags.variation <= 1:
    raise ConfigError(f"--variation must be 0 to 1, got {flags.variation}")
  if flags.interpolate is not None:
    if flags.variation is not None:
      raise ConfigError("--interpolate and --variation exclude each other")
    if len(prompts) > 2 or flags.interpolate < 2:
      raise ConfigError(
        "--interpolate N draws N >= 2 images between two prompts, or with one "
        f"or none between two noises; got N={flags.interpolate} and "
        f"{len(prompts)} prompts"
      )
    if flags.num > 1:
      raise ConfigError("--interpolate says how many; leave --num out")
    toward = prompts[1] if len(prompts) == 2 else None
    return prompts[:1] * flags.interpolate, toward
  return [text for text in prompts for _ in range(flags.num)], None


def _lines(path: str) -> list[str]:
  try:
    if path == "-":
      text = sys.stdin.read()
    else:
      with open(path, encoding="utf-8-sig") as file:
        text = file.read()
  except (OSError, UnicodeDecodeError) as error:
    raise ConfigError(f"--prompts_file {path!r}: {error}") from error
  found = [line.strip() for line in text.splitlines() if line.strip()]
  if not found:
    raise ConfigError(f"--prompts_file {path!r} holds no prompt")
  if len(found) > PROMPTS:
    raise ConfigError(
      f"--prompts_file {path!r} holds {len(found)} prompts; {PROMPTS} at most "
      "are drawn at a time: split it"
    )
  return found


def settings_of(
  flags: argparse.Namespace, opened: LoadedModel, size: tuple[int, int] | None
) -> SamplingConfig:
  """How to sample.

  Args:
    size: of the picture given, height first, or None.

  Raises:
    ValueError: a flag's value means nothing, or not for this model.
  """
  _check_numbers(flags)
  guidance = opened.guidance if flags.guidance is None else flags.guidance
  if flags.num < 1 or flags.batch < 1:
    raise ConfigError(
      f"--num and --batch must be 1 or more, got {flags.num} and {flags.batch}"
    )
  height, width = size or (opened.height, opened.width)
  strength = flags.strength
  if strength is None:
    parts = opened.model.conditioners
    is_beside = any(isinstance(part, ConcatConditioner) for part in parts)
    is_whole = flags.mask or flags.outpaint or is_beside or not flags.image
    strength = 1.0 if is_whole else IMAGE_STRENGTH
  settings = SamplingConfig(
    height=height if flags.height is None else flags.height,
    width=width if flags.width is None else flags.width,
    sampler_config=recipe_of(flags, opened),
    guidance=ClassifierFreeGuidance(
      guidance, flags.guidance_rescale, *flags.guidance_interval
    ),
    seed=flags.seed,
    strength=strength,
    threshold=flags.threshold and tuple(flags.threshold),
    window=flags.window,
    tile=flags.tiled,
    noise_level=_noise_level(flags, opened),
    classifier_scale=flags.classifier_scale,
    control=(flags.control_scale, *flags.control_interval),
  )
  for name in ("window", "tile"):
    value = getattr(settings, name)
    if value is not None and value < 1:
      raise ConfigError(f"--{name} must be pixels, 1 or more, got {value}")
  return settings


def _check_numbers(flags: argparse.Namespace) -> None:
  """Raises ConfigError for numbers that nothing can be done with."""
  for name, value in vars(flags).items():
    if isinstance(value, float) and not abs(value) <= MOST:
      raise ConfigError(f"--{name} must be within +-{MOST:g}, got {value}")
  if not 0 <= flags.seed < SEEDS:
    raise ConfigError(f"--seed must be 0 to {SEEDS - 1}, got {flags.seed}")


def _noise_level(flags: argparse.Namespace, opened: LoadedModel) -> int:
  if flags.noise_level is None:
    return NOISE_LEVEL
  if opened.model.noise_augmentation_schedule is None:
    raise ConfigError(
      "this model enlarges nothing, or nothing noisy; leave --noise_level out"
    )
  return flags.noise_level


def recipe_of(flags: argparse.Namespace, opened: LoadedModel) -> SamplerConfig:
  """The sampler: the model's own but for what the flags say.

  Raises:
    ValueError: there is none of that name, or it has no such option.
  """
  own, timestep_spacing = opened.sampler_config, None
  told = {"steps": flags.steps, "compat": flags.compat}
  told |= {"final_time": own.final_time, "steps_offset": own.steps_offset}
  if flags.sampler is not None:
    told["sampler"], timestep_spacing = parse_sampler_name(flags.sampler)
  if flags.sampler is None or told["sampler"] == own.sampler:
    told |= {"sampler": own.sampler, "order": own.order}
    told["base_spacing"] = own.base_spacing
    timestep_spacing = timestep_spacing or own.timestep_spacing
  if flags.grid is not None:
    timestep_spacing = parse_timestep_spacing(flags.grid)
  if flags.order is not None:
    told["order"] = flags.order
  for name in ("times", "sigmas"):
    if getattr(flags, name) is not None:
      told[name] = _numbers(name, getattr(flags, name))
      told["steps"] = len(told[name])
  return SamplerConfig(**told, timestep_spacing=timestep_spacing, eta=flags.eta)


def _numbers(name: str, text: str) -> tuple[float, ...]:
  """Numbers between commas; a 0 at the end of sigmas is the image itself."""
  try:
    found = [float(word) for word in text.split(",") if word.strip()]
  except ValueError:
    found = []
  if name == "sigmas" and found and found[-1] == 0:
    found.pop()
  if not found or not all(map(math.isfinite, found)):
    raise ConfigError(f"--{name} takes numbers between commas, got {text!r}")
  return tuple(found)


def noise_of(
  flags: argparse.Namespace,
  settings: SamplingConfig,
  opened: LoadedModel,
  count: int,
) -> np.ndarray | None:
  """`count` x_T where the flags say whence: a file, or torch's generator."""
  if flags.initial_latents is not None:
    if flags.rng == "torch":
      raise ConfigError("--initial_latents replace --rng; give one of them")
    return _read_array(flags.initial_latents)
  if flags.rng != "torch":
    return None
  if settings.sampler_config.is_random:
    raise ConfigError(
      "--rng torch draws the first latents only, and this sampler draws more; "
      "use one that adds no noise, or --eta 0"
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
