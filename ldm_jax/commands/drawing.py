"""Behind sample.py: a run and flags become pictures."""

import argparse
import json
import math
import os
from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

import ldm_jax
from ldm_jax.commands.doors import usage
from ldm_jax.data.tokens import Words
from ldm_jax.diffusion import samplers
from ldm_jax.loop import say
from ldm_jax.nn.conditioner import ClassEmbedder, TextEmbedder
from ldm_jax.nodes import ConfigError
from ldm_jax.run import Run
from ldm_jax.runtime import pictures
from ldm_jax.runtime.sharding import MeshShape, Sharding
from ldm_jax.sampling import Said, Settings, Studio
from ldm_jax.tasks.denoising import Denoising

ETA = {"ddim": 0.0, "ddpm": 1.0}  # what the papers do
LONGEST = 10_000  # characters of a prompt


def draw(flags: argparse.Namespace) -> int:
  """Draws what the flags ask for; returns the exit code."""
  with usage():
    run = open_denoising(flags.model)
    settings = _settings(flags, run)
    prompts = [text for text in flags.prompt for _ in range(flags.num)]
    count = len(prompts) or flags.num
    positive = said(run, count, prompts, flags.class_label)
    negative = said(run, count, [flags.negative_prompt] * count, None)
    sharding = MeshShape().build()
    studio = open_studio(run, sharding)
    os.makedirs(flags.out, exist_ok=True)
  batches = -(-count // flags.batch)
  first, images = _next_number(flags.out), []
  with tqdm(total=batches * settings.steps, unit="step") as bar:
    for drawn in studio.draw(
      settings,
      positive,
      negative,
      count=count,
      batch=flags.batch,
      progress=bar.update,
    ):
      for image in drawn:
        number = first + len(images)
        text = prompts[len(images)] if prompts else ""
        told = (
          None
          if flags.no_metadata
          else _told(flags, settings, text, len(images))
        )
        path = os.path.join(flags.out, f"{number:05d}.png")
        pictures.write_png(path, image, told)
        print(path, flush=True)
        images.append(image)
  sheet = pictures.grid(np.stack(images), prompts)
  name = f"grid_{first:05d}.png" if first else "grid.png"
  pictures.write_png(os.path.join(flags.out, name), sheet)
  print(os.path.join(flags.out, name))
  return 0


def open_denoising(folder: str) -> Run:
  """The run of stage two in `folder`.

  Raises:
    ConfigError: if it is none.
  """
  run = Run.open(folder)
  if not isinstance(run.experiment.task, Denoising):
    raise ConfigError(
      f"{folder!r} is a run of stage one, which reconstructs but cannot draw; "
      "give --model a run of stage two"
    )
  return run


def open_studio(run: Run, sharding: Sharding) -> Studio:
  """The run's model, averaged, on the devices."""
  task = run.experiment.task
  params = task.parameters(run.trained(sharding), run.frozen(sharding))
  return Studio(task.model, params, sharding)


def _settings(flags: argparse.Namespace, run: Run) -> Settings:
  _, height, width, _ = run.batch["image"].shape
  eta = ETA[flags.sampler] if flags.eta is None else flags.eta
  if flags.num < 1 or flags.batch < 1:
    raise ConfigError(
      f"--num and --batch must be 1 or more, got {flags.num} and {flags.batch}"
    )
  if not (math.isfinite(flags.guidance) and eta >= 0 and math.isfinite(eta)):
    raise ConfigError(
      f"--guidance must be a number and --eta 0 or more, got "
      f"{flags.guidance} and {eta}"
    )
  settings = Settings(
    height=flags.height or height,
    width=flags.width or width,
    steps=flags.steps,
    guidance=flags.guidance,
    sampler=flags.sampler,
    grid=flags.grid,
    eta=eta,
    seed=flags.seed,
  )
  model = run.experiment.task.model
  model.first_stage.latent_shape(settings.height, settings.width)
  samplers.times(settings.steps, settings.grid, model.schedule.steps)
  return settings


def said(
  run: Run, count: int, prompts: Sequence[str], label: int | None
) -> Said:
  """What prompts and label say to the run's conditioners.

  Raises:
    ConfigError: if the model has no ear for them.
  """
  parts = {type(p): p for p in run.experiment.task.model.conditioners}
  raw, is_null = {}, {}
  if any(prompts) and TextEmbedder not in parts:
    raise ConfigError("this model takes no text; leave --prompt out")
  if label is not None and ClassEmbedder not in parts:
    raise ConfigError("this model knows no classes; leave --class_label out")
  for part in parts.values():
    if isinstance(part, TextEmbedder):
      texts = list(prompts) or [""] * count
      raw[part.reads] = _tokens(run.tokenizer, texts)
      is_null[part.reads] = np.asarray([not text.strip() for text in texts])
    else:
      if label is not None and not 0 <= label < part.classes:
        raise ConfigError(
          f"--class_label must be 0 to {part.classes - 1}, got {label}"
        )
      raw[part.reads] = np.full(count, label or 0, np.int32)
      is_null[part.reads] = np.full(count, label is None)
  return Said(raw, is_null)


def _tokens(words: Words, texts: Sequence[str]) -> np.ndarray:
  """Ids of prompts; what is lost on the way is said."""
  for text in dict.fromkeys(texts):
    if len(text) > LONGEST:
      raise ConfigError(
        f"a prompt has {len(text)} characters; {LONGEST} are the most"
      )
    if unknown := words.unknown(text):
      say(f"note: the model does not know {', '.join(unknown)} ({text!r})")
    (lost,) = words.cut([text])
    if lost:
      say(f"note: the last {lost} tokens of {text!r} are beyond its length")
  return words.encode(texts)


def _next_number(folder: str) -> int:
  """One more than the largest number of a PNG in `folder`."""
  stems = (os.path.splitext(name)[0] for name in os.listdir(folder))
  return max((int(stem) for stem in stems if stem.isdigit()), default=-1) + 1


def _told(
  flags: argparse.Namespace, settings: Settings, prompt: str, index: int
) -> dict[str, str]:
  """What a PNG says of itself."""
  told = {
    "prompt": prompt,
    "negative_prompt": flags.negative_prompt,
    "class_label": flags.class_label,
    "index": index,
    "model": flags.model,
    "ldm_jax": ldm_jax.__version__,
  }
  told |= {
    name: getattr(settings, name) for name in settings.__dataclass_fields__
  }
  return {"ldm_jax": json.dumps(told)}
