"""The way out: our modules as a diffusers folder or as one file."""

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from ldm_jax.data.text.clip_prompts import ClipPrompts
from ldm_jax.data.text.tokenizers import Tokenizer
from ldm_jax.errors import ConfigError
from ldm_jax.latent_diffusion import LatentDiffusion, Parameters
from ldm_jax.pretrained import model_index
from ldm_jax.pretrained.configs import scheduler_config
from ldm_jax.pretrained.export import Network, lone, parts_of
from ldm_jax.pretrained.networks import Module
from ldm_jax.weights.folders import write_sharded
from ldm_jax.weights.safetensors_files import write_safetensors

MAX_BYTES = 10 * 2**30  # of a shard, as diffusers' save_pretrained has it

FORMATS = {
  "fp32": np.dtype(np.float32),
  "fp16": np.dtype(np.float16),
  "bf16": np.dtype(ml_dtypes.bfloat16),
}


def save_pretrained(
  module: LatentDiffusion | Module,
  params: Parameters | Mapping[str, Any],
  folder: str,
  *,
  tokenizer: ClipPrompts | Tokenizer | None = None,
  side: int = 512,
  dtype: str = "fp32",
  max_bytes: int = MAX_BYTES,
) -> None:
  """Writes a folder that diffusers and transformers load as it is.

  A whole model becomes a pipeline with model_index.json, a scheduler and a
  model card; a network by itself its config.json and weights.

  Args:
    tokenizer: the tokenizers of a whole model.
    side: of the images that diffusers draws unless asked for others, in pixels;
      the latents of a U-Net by itself are taken to be an eighth of it.
    dtype: of the tensors: "fp32", "fp16" or "bf16".
    max_bytes: size from which weights are cut into shards.

  Raises:
    ConfigError: the format cannot hold the model; the message says what of it.
    FileExistsError: the folder is there and not empty.
  """
  cast = _format(dtype)
  with _filling(folder) as path:
    if isinstance(module, LatentDiffusion):
      _write_pipeline(path, module, params, tokenizer, side, cast, max_bytes)
    else:
      _write_network(path, lone(module, params, side), cast, max_bytes)


def save_single_file(
  module: LatentDiffusion | Module,
  params: Parameters | Mapping[str, Any],
  path: str,
  *,
  dtype: str = "fp32",
) -> None:
  """Writes one .safetensors with the names of CompVis and Stability.

  Raises:
    ConfigError: the format cannot hold the model; the message says what of it.
    FileExistsError: the file is there.
  """
  cast = _format(dtype)
  if os.path.exists(path):
    raise FileExistsError(f"{path} is there already; choose another name")
  if isinstance(module, LatentDiffusion):
    prefixes = model_index.prefixes(module)
    tensors = {}
    for network in parts_of(module, params):
      prefix, kind = prefixes[network.name]
      network = dataclasses.replace(network, kind=kind)
      for name, tensor in network.tensors("compvis", cast).items():
        tensors[prefix + name] = tensor
    if module.prediction == "v" and not _tells_v(module):
      tensors["v_pred"] = np.zeros((0,), cast)
    if module.schedule.zero_terminal_snr:
      tensors["ztsnr"] = np.zeros((0,), cast)
  else:
    tensors = lone(module, params).tensors("compvis", cast)
  os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
  write_safetensors(path, tensors)


def _tells_v(module: LatentDiffusion) -> bool:
  """Whether readers of single files take such a model for a v one anyway."""
  return module.unet.vector == "table"


def _write_pipeline(
  path: pathlib.Path,
  model: LatentDiffusion,
  params: Parameters,
  words: ClipPrompts | Tokenizer | None,
  side: int,
  cast: np.dtype,
  max_bytes: int,
) -> None:
  networks = parts_of(model, params, side)
  index = model_index.read_index(model, networks, words)
  renamed = model_index.old_names(index["_class_name"])
  for network in networks:
    name = renamed.get(network.name, network.name)
    _write_network(path / name, network, cast, max_bytes)
  scheduler = scheduler_config.schedule_config(model.schedule, model.prediction)
  _write_json(path / "scheduler" / "scheduler_config.json", scheduler)
  for name, tokenizer in model_index.tokenizers(model, words).items():
    tokenizer.save_pretrained(str(path / name))
  (path / "README.md").write_text(
    model_index.model_card(index), encoding="utf-8"
  )
  _write_json(path / "model_index.json", index)


def _write_network(
  folder: pathlib.Path, network: Network, cast: np.dtype, max_bytes: int
) -> None:
  tensors = network.tensors("diffusers", cast)
  if network.kind == "clip":
    # The form that every tool accepts; transformers wrote it for years.
    tensors = {
      name
      if name.startswith("text_projection")
      else f"text_model.{name}": array
      for name, array in tensors.items()
    }
  is_text = network.kind in ("clip", "open_clip", "text")
  stem = "model" if is_text else "diffusion_pytorch_model"
  write_sharded(folder, stem, tensors=tensors, max_bytes=max_bytes)
  _write_json(folder / "config.json", network.config)


def _write_json(path: pathlib.Path, value: Mapping[str, Any]) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  text = json.dumps(value, indent=2, sort_keys=True) + "\n"
  path.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def _filling(folder: str) -> Iterator[pathlib.Path]:
  """A folder to write into, which takes its name only when it is complete."""
  path = pathlib.Path(folder).absolute()
  if path.exists() and (not path.is_dir() or any(path.iterdir())):
    raise FileExistsError(f"{folder} is there already; choose another folder")
  path.parent.mkdir(parents=True, exist_ok=True)
  part = path.with_name(f"{path.name}.part")
  shutil.rmtree(part, ignore_errors=True)
  part.mkdir()
  try:
    yield part
    os.replace(part, path)
  finally:
    shutil.rmtree(part, ignore_errors=True)


def _format(word: str) -> np.dtype:
  if word not in FORMATS:
    raise ConfigError(
      f"dtype {word!r} is not known; choose one of {', '.join(FORMATS)}"
    )
  return FORMATS[word]
