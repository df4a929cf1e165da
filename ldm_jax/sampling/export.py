"""Behind export: a folder that draws without this package."""

import argparse
import dataclasses
import inspect
import json
import logging
import os
import shutil
from typing import Any

import numpy as np

from ldm_jax.cli.exit_codes import usage_errors
from ldm_jax.data.text.clip_prompts import ClipPrompts
from ldm_jax.errors import ConfigError
from ldm_jax.loaded_model import LoadedModel
from ldm_jax.nn.conditioners.clip_embedder import ClipEmbedder
from ldm_jax.nn.conditioners.embedders import (
  ClassEmbedder,
  SizeEmbedder,
  TextEmbedder,
)
from ldm_jax.pretrained.open_model import LoadOptions, open_model
from ldm_jax.runtime.log import log_duration
from ldm_jax.sampling import Conditioning, SamplingConfig, exported_runner
from ldm_jax.sampling.conditioning import ConditionInputs, encode_conditions
from ldm_jax.sampling.exported_program import export_sampler
from ldm_jax.sampling.resolve_request import recipe_of
from ldm_jax.weights.safetensors_files import write_safetensors

logger = logging.getLogger(__name__)

HEARD = (TextEmbedder, ClipEmbedder, ClassEmbedder, SizeEmbedder)


def export(flags: argparse.Namespace) -> int:
  """Writes the folder; returns the exit code."""
  with usage_errors():
    if os.path.exists(flags.out):
      raise ConfigError(f"{flags.out} is there already; choose another --out")
    opened = open_model(flags.model, LoadOptions.told(flags))
    settings = _settings(flags, opened)
    said, ears = _ears(opened, settings)
  with log_duration("exporting the sampler"):
    made = export_sampler(
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
    "sampler_config": dataclasses.asdict(settings.sampler_config),
    "ears": ears,
  }
  with open(os.path.join(part, "sampler.json"), "w") as file:
    json.dump(told, file, indent=1)
  shutil.copy(
    inspect.getsourcefile(exported_runner), os.path.join(part, "run.py")
  )
  os.replace(part, flags.out)
  size = sum(entry.stat().st_size for entry in os.scandir(flags.out))
  logger.info(f"{size / 2**20:.1f} MiB; draw with python {flags.out}/run.py")
  print(flags.out)
  return 0


def _settings(flags: argparse.Namespace, opened: LoadedModel) -> SamplingConfig:
  """What is fixed from now on, and the guidance that is not.

  Raises:
    ValueError: it cannot be.
  """
  settings = SamplingConfig(
    height=flags.height or opened.height,
    width=flags.width or opened.width,
    sampler_config=recipe_of(flags, opened),
  )
  scale = opened.guidance if flags.guidance is None else flags.guidance
  guidance = settings.guidance._replace(scale=scale)
  guidance.check()
  unit = opened.model.size_multiple
  if settings.height % unit or settings.width % unit:
    raise ConfigError(
      f"images of {settings.height} x {settings.width}: sides must be "
      f"multiples of {unit}"
    )
  settings.sampler_config.plan(opened.model.schedule)
  return dataclasses.replace(settings, guidance=guidance)


def _ears(
  opened: LoadedModel, settings: SamplingConfig
) -> tuple[Conditioning, list[dict[str, Any]]]:
  """An example of what is heard, and how run.py makes it from flags.

  Raises:
    ConfigError: a conditioner hears what run.py cannot say.
  """
  parts = opened.model.conditioners
  for part in parts:
    if not isinstance(part, HEARD):
      raise ConfigError(
        f"this model reads {part.input_key!r}; what can be exported "
        "reads text, a class, or nothing"
      )
  request = ConditionInputs([""], [None], None, settings.height, settings.width)
  said, silent = encode_conditions(opened, request)
  ears = []
  for part in parts:
    ear: dict[str, Any] = {"input_key": part.input_key}
    if isinstance(part, ClassEmbedder):
      ear |= {"kind": "class", "classes": part.classes}
    elif isinstance(part, SizeEmbedder):
      rows = [
        np.asarray(side.raw[part.input_key][0]) for side in (said, silent)
      ]
      ear |= {"kind": "sizes", "rows": [row.tolist() for row in rows]}
    else:
      ear |= {"kind": "text", "is_stacked": isinstance(part, ClipEmbedder)}
    ears.append(ear)
  return said, ears


def _write_tokenizers(
  folder: str, opened: LoadedModel, ears: list[dict[str, Any]]
) -> None:
  """One file per tower, which begins, ends, cuts and pads by itself."""
  for ear in ears:
    if ear["kind"] != "text":
      continue
    words = opened.tokenizer
    towers = words.syntaxes if isinstance(words, ClipPrompts) else (words,)
    ear["tokenizers"] = []
    for i, tower in enumerate(towers):
      name = f"tokenizer_{i}.json"
      tower.fixed.save(os.path.join(folder, name))
      ear["tokenizers"].append(name)
