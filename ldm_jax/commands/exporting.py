"""Behind export: a folder that draws without this package."""

import argparse
import dataclasses
import inspect
import json
import os
import shutil
from typing import Any

import numpy as np

from ldm_jax.commands.asking import recipe_of
from ldm_jax.commands.doors import usage
from ldm_jax.commands.models import Reading, open_model
from ldm_jax.data.prompts import Prompts
from ldm_jax.hearing import Request, hear
from ldm_jax.nn.conditioner import ClassEmbedder, SizeEmbedder, TextEmbedder
from ldm_jax.nn.prompts import ClipEmbedder
from ldm_jax.nodes import ConfigError
from ldm_jax.opened import Opened
from ldm_jax.runtime.speech import announced, say
from ldm_jax.sampling import Said, Settings, player
from ldm_jax.sampling.portable import portable
from ldm_jax.weights.safetensors_files import write_safetensors

HEARD = (TextEmbedder, ClipEmbedder, ClassEmbedder, SizeEmbedder)


def export(flags: argparse.Namespace) -> int:
  """Writes the folder; returns the exit code."""
  with usage():
    if os.path.exists(flags.out):
      raise ConfigError(f"{flags.out} is there already; choose another --out")
    opened = open_model(flags.model, Reading.told(flags))
    settings = _settings(flags, opened)
    said, ears = _ears(opened, settings)
  with announced("exporting the sampler"):
    made = portable(
      opened.model, opened.params, settings, said, is_inside=flags.inside
    )
  part = flags.out.rstrip(os.sep) + ".part"
  shutil.rmtree(part, ignore_errors=True)
  os.makedirs(part)
  with open(os.path.join(part, "sampler.jax"), "wb") as file:
    file.write(made.program)
  if made.weights:
    write_safetensors(os.path.join(part, "weights.safetensors"), made.weights)
  _write_tokenizers(part, opened, ears)
  told = {
    "height": settings.height,
    "width": settings.width,
    "guidance": float(settings.guidance.scale),
    "recipe": dataclasses.asdict(settings.recipe),
    "ears": ears,
  }
  with open(os.path.join(part, "sampler.json"), "w") as file:
    json.dump(told, file, indent=1)
  shutil.copy(inspect.getsourcefile(player), os.path.join(part, "run.py"))
  os.replace(part, flags.out)
  size = sum(entry.stat().st_size for entry in os.scandir(flags.out))
  say(f"{size / 2**20:.1f} MiB; draw with python {flags.out}/run.py")
  print(flags.out)
  return 0


def _settings(flags: argparse.Namespace, opened: Opened) -> Settings:
  """What is fixed from now on, and the guidance that is not.

  Raises:
    ValueError: it cannot be.
  """
  settings = Settings(
    height=flags.height or opened.height,
    width=flags.width or opened.width,
    recipe=recipe_of(flags, opened),
  )
  scale = opened.guidance if flags.guidance is None else flags.guidance
  guidance = settings.guidance._replace(scale=scale)
  guidance.check()
  unit = opened.model.unit
  if settings.height % unit or settings.width % unit:
    raise ConfigError(
      f"images of {settings.height} x {settings.width}: sides must be "
      f"multiples of {unit}"
    )
  settings.recipe.plan(opened.model.schedule)
  return dataclasses.replace(settings, guidance=guidance)


def _ears(
  opened: Opened, settings: Settings
) -> tuple[Said, list[dict[str, Any]]]:
  """An example of what is heard, and how run.py makes it from flags.

  Raises:
    ConfigError: a conditioner hears what run.py cannot say.
  """
  parts = opened.model.conditioners
  for part in parts:
    if not isinstance(part, HEARD):
      raise ConfigError(
        f"this model reads {part.reads!r}; what can be exported reads text, a "
        "class, or nothing"
      )
  request = Request([""], [None], None, settings.height, settings.width)
  said, silent = hear(opened, request, say)
  ears = []
  for part in parts:
    ear: dict[str, Any] = {"reads": part.reads}
    if isinstance(part, ClassEmbedder):
      ear |= {"kind": "class", "classes": part.classes}
    elif isinstance(part, SizeEmbedder):
      rows = [np.asarray(side.raw[part.reads][0]) for side in (said, silent)]
      ear |= {"kind": "sizes", "rows": [row.tolist() for row in rows]}
    else:
      ear |= {"kind": "text", "is_stacked": isinstance(part, ClipEmbedder)}
    ears.append(ear)
  return said, ears


def _write_tokenizers(
  folder: str, opened: Opened, ears: list[dict[str, Any]]
) -> None:
  """One file per tower, which begins, ends, cuts and pads by itself."""
  for ear in ears:
    if ear["kind"] != "text":
      continue
    words = opened.words
    towers = words.dialects if isinstance(words, Prompts) else (words,)
    ear["tokenizers"] = []
    for i, tower in enumerate(towers):
      name = f"tokenizer_{i}.json"
      tower.fixed.save(os.path.join(folder, name))
      ear["tokenizers"].append(name)
