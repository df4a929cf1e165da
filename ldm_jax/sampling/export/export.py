"""A folder with a whole guided sampler: StableHLO, weights, tokenizers."""

import dataclasses
import inspect
import json
import logging
import os
import shutil
from typing import Any

import numpy as np

from ldm_jax.data.text.clip_prompts import ClipPrompts
from ldm_jax.errors import ConfigError, config_errors
from ldm_jax.fields.arguments import check_request, checked
from ldm_jax.files.atomic_writes import new_folder, replace_file
from ldm_jax.files.file_lock import lock_output
from ldm_jax.loaded_model import LoadedModel
from ldm_jax.nn.conditioners.clip_embedder import ClipEmbedder
from ldm_jax.nn.conditioners.embedders import (
  ClassEmbedder,
  SizeEmbedder,
  TextEmbedder,
)
from ldm_jax.nn.conditioners.t5_embedder import T5Embedder
from ldm_jax.pretrained.open_model import LoadOptions, open_model
from ldm_jax.runtime.log import log_duration
from ldm_jax.sampling.conditioning import ConditionInputs, encode_conditions
from ldm_jax.sampling.export import exported_runner
from ldm_jax.sampling.export.exported_program import export_sampler
from ldm_jax.sampling.inputs.resolve_request import resolve_sampler
from ldm_jax.sampling.request import GenerationRequest
from ldm_jax.sampling.sampling_config import Conditioning, SamplingConfig
from ldm_jax.weights.safetensors_files import write_safetensors

logger = logging.getLogger(__name__)

MAX_CHUNKS = 8
TEXTS = (TextEmbedder, ClipEmbedder, T5Embedder)
EXPORTABLE = (*TEXTS, ClassEmbedder, SizeEmbedder)


@dataclasses.dataclass(frozen=True)
class ExportRequest:
  """What to export, and where to.

  Attributes:
    model: a run, a diffusers folder, a single file, or owner/model.
    out: folder to write, which must not exist.
    sampling: sampler, steps, size and default guidance; its other fields are
      not used. Size, sampler and steps are fixed by the export.
    options: how the model is read.
    is_inside: put the weights into the program instead of a file of their own.
    chunks: the most that a prompt for CLIP may have; there is a program for
      each number of them.
  """

  model: str
  out: str
  sampling: GenerationRequest = GenerationRequest()
  options: LoadOptions = LoadOptions()
  is_inside: bool = False
  chunks: int = 1

  def __post_init__(self):
    check_request(self)
    if not 1 <= self.chunks <= MAX_CHUNKS:
      raise ConfigError(
        f"chunks must be 1 to {MAX_CHUNKS}, got {self.chunks!r}"
      )
    if self.options.weight_dtype is not None:
      raise ConfigError(
        "an exported sampler holds floating-point parameters, not "
        f"weight_dtype={self.options.weight_dtype!r}; leave it out"
      )


@dataclasses.dataclass(frozen=True)
class ExportResult:
  """What was exported.

  Attributes:
    folder: with run.py, which generates images.
    bytes: of all its files.
  """

  folder: str
  bytes: int


@checked
def export(request: ExportRequest) -> ExportResult:
  """Writes the folder of a sampler that runs without this package.

  Raises:
    ConfigError: the folder exists, or the model or a setting cannot be
      exported.
    WeightsError: see `open_model`.
  """
  with lock_output(request.out):
    return _export(request)


def _export(request: ExportRequest) -> ExportResult:
  with config_errors():
    if os.path.lexists(request.out):
      raise ConfigError(
        f"{request.out} exists already; choose another folder (--out)"
      )
    loaded = open_model(request.model, request.options)
    config = _config(request.sampling, loaded)
    conditioning, conditioners = _conditioners(loaded, config)
  with log_duration("exporting the sampler"):
    programs, weights = _programs(request, loaded, config, conditioning)
  settings = {
    "height": config.height,
    "width": config.width,
    "guidance": float(config.guidance.scale),
    "sampler_config": dataclasses.asdict(config.sampler_config),
    "conditioners": conditioners,
    "chunks": len(programs),
  }
  if isinstance(loaded.tokenizer, ClipPrompts):
    settings["tokens_per_chunk"] = loaded.tokenizer.tokens_per_chunk + 2
  with new_folder(request.out) as part:
    for name, program in programs.items():
      with replace_file(os.path.join(part, name)) as file:
        file.write(program)
    if weights:
      path = os.path.join(part, "weights.safetensors")
      write_safetensors(path, weights)
    _write_tokenizers(part, loaded, conditioners)
    with replace_file(os.path.join(part, "sampler.json"), "utf-8") as file:
      json.dump(settings, file, indent=1)
    runner = inspect.getsourcefile(exported_runner)
    shutil.copy(runner, os.path.join(part, "run.py"))
  size = sum(entry.stat().st_size for entry in os.scandir(request.out))
  logger.info(
    "%.1f MiB; generate with python %s/run.py", size / 2**20, request.out
  )
  return ExportResult(request.out, size)


def _programs(
  request: ExportRequest,
  loaded: LoadedModel,
  config: SamplingConfig,
  conditioning: Conditioning,
) -> tuple[dict[str, bytes], dict[str, np.ndarray]]:
  """A program for every number of chunks, by file, and their weights.

  Raises:
    ConfigError: several chunks are wanted of a model without CLIP.
  """
  keys = [
    part.input_key
    for part in loaded.model.conditioners
    if isinstance(part, ClipEmbedder)
  ]
  if request.chunks > 1 and not keys:
    raise ConfigError(
      f"chunks={request.chunks}: this model has no CLIP text encoder, whose "
      "prompts alone have chunks; leave it out (--chunks)"
    )
  programs, weights = {}, {}
  for count in range(1, request.chunks + 1):
    raw = dict(conditioning.raw)
    for key in keys:
      raw[key] = np.tile(raw[key], count)
    exported = export_sampler(
      loaded.model,
      loaded.params,
      config,
      dataclasses.replace(conditioning, raw=raw),
      is_inside=request.is_inside,
    )
    end = "" if count == 1 else f"_{count}"
    programs[f"sampler{end}.jax"] = exported.program
    weights = exported.weights
  return programs, weights


def _config(request: GenerationRequest, loaded: LoadedModel) -> SamplingConfig:
  """The settings that the export fixes, and the default guidance.

  Raises:
    ValueError: the model has no such size or sampler.
  """
  config = SamplingConfig(
    height=request.height or loaded.height,
    width=request.width or loaded.width,
    sampler_config=resolve_sampler(request, loaded.sampler_config),
  )
  scale = loaded.guidance if request.guidance is None else request.guidance
  guidance = config.guidance._replace(scale=scale)
  guidance.check()
  unit = loaded.model.size_multiple
  if config.height % unit or config.width % unit:
    raise ConfigError(
      f"images of {config.height} x {config.width}: sides must be multiples of "
      f"{unit}"
    )
  shape = loaded.model.first_stage.latent_shape(config.height, config.width)
  size = shape[0], shape[1]
  config.sampler_config.plan(loaded.model.schedule, latent_size=size)
  return dataclasses.replace(config, guidance=guidance)


def _conditioners(
  loaded: LoadedModel, config: SamplingConfig
) -> tuple[Conditioning, list[dict[str, Any]]]:
  """Example inputs, and how run.py makes a conditioner's input from flags.

  Raises:
    ConfigError: a conditioner reads what run.py has no flag for.
  """
  parts = loaded.model.conditioners
  for part in parts:
    if not isinstance(part, EXPORTABLE):
      raise ConfigError(
        f"this model reads {part.input_key!r}; what can be exported "
        "reads text, a class, or nothing"
      )
  inputs = ConditionInputs([""], [None], None, config.height, config.width)
  sides = encode_conditions(loaded, inputs)
  described = []
  for part in parts:
    entry: dict[str, Any] = {"input_key": part.input_key}
    if isinstance(part, ClassEmbedder):
      entry |= {"kind": "class", "classes": part.classes}
      entry["names"] = list(loaded.classes)
    elif isinstance(part, SizeEmbedder):
      rows = [np.asarray(side.raw[part.input_key][0]) for side in sides]
      entry |= {"kind": "sizes", "rows": [row.tolist() for row in rows]}
    else:
      entry |= {"kind": "text", "is_stacked": isinstance(part, ClipEmbedder)}
      if isinstance(part, ClipEmbedder):
        entry["max_chunks"] = loaded.tokenizer.max_chunks
    described.append(entry)
  return sides[0], described


def _write_tokenizers(
  folder: str, loaded: LoadedModel, conditioners: list[dict[str, Any]]
) -> None:
  """One tokenizer file per text encoder, which truncates and pads too."""
  for part, entry in zip(loaded.model.conditioners, conditioners, strict=True):
    if not isinstance(part, TEXTS):
      continue
    prompts, start = loaded.tokenizer, "tokenizer"
    if isinstance(part, T5Embedder):
      prompts, start = loaded.t5_tokenizer, "t5_tokenizer"
    tokenizers = (
      prompts.syntaxes if isinstance(prompts, ClipPrompts) else (prompts,)
    )
    entry["tokenizers"] = []
    for i, tokenizer in enumerate(tokenizers):
      name = f"{start}_{i}.json"
      tokenizer.fixed.save(os.path.join(folder, name))
      entry["tokenizers"].append(name)
