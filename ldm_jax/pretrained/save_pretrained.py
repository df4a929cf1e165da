"""Writes models as diffusers folders or single files."""

import dataclasses
import json
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from ldm_jax.data.text.clip_prompts import ClipPrompts
from ldm_jax.data.text.tokenizers import Tokenizer
from ldm_jax.errors import ConfigError
from ldm_jax.fields.arguments import checked
from ldm_jax.files.atomic_writes import check_absent, new_folder, replace_file
from ldm_jax.files.file_lock import lock_output
from ldm_jax.latent_diffusion import LatentDiffusion, Parameters
from ldm_jax.nn.dit.dit import DiT
from ldm_jax.nn.encoders.dinov2 import DinoV2
from ldm_jax.pretrained import model_index
from ldm_jax.pretrained.components import ALIASES
from ldm_jax.pretrained.dit.released_file import released_tensors
from ldm_jax.pretrained.export import export_network, export_networks
from ldm_jax.pretrained.networks import Module
from ldm_jax.pretrained.quantizer import check_not_quantized
from ldm_jax.pretrained.single_file.prefixes import written_prefixes
from ldm_jax.pretrained.single_file.stored_configs import (
  StoredConfigs,
  stored,
)
from ldm_jax.pretrained.single_file.submodules import Submodule
from ldm_jax.pretrained.single_network.exported_network import ExportedNetwork
from ldm_jax.pretrained.text.transformers_names import transformers_tensors
from ldm_jax.weights.folders import write_sharded
from ldm_jax.weights.safetensors_files import FORMAT, write_safetensors

logger = logging.getLogger(__name__)

MAX_SHARD_BYTES = 10 * 2**30  # as diffusers' save_pretrained has it

DTYPES = {
  "fp32": np.dtype(np.float32),
  "fp16": np.dtype(np.float16),
  "bf16": np.dtype(ml_dtypes.bfloat16),
}


@checked
def save_pretrained(
  module: LatentDiffusion | Module,
  params: Parameters | Mapping[str, Any],
  folder: str,
  *,
  tokenizer: ClipPrompts | Tokenizer | None = None,
  image_size: int = 512,
  dtype: str = "fp32",
  max_shard_bytes: int = MAX_SHARD_BYTES,
  latent_scale: float | None = None,
  scheduler: Mapping[str, Any] | None = None,
  classes: Sequence[str] = (),
  t5_tokenizer: Tokenizer | None = None,
) -> None:
  """Writes a folder that diffusers and transformers load as it is.

  A model becomes a pipeline with model_index.json, a scheduler and a model
  card; a single network its config.json and weights.

  Args:
    tokenizer: of a model's prompts.
    image_size: default side of the images that diffusers generates, in pixels;
      the latents of a single U-Net are taken to be an eighth of it.
    dtype: of the tensors: "fp32", "fp16" or "bf16".
    max_shard_bytes: largest size of one file of weights.
    latent_scale: of an autoencoder alone, what its latents are to be multiplied
      by; None for 0.18215, diffusers' own default. A model has its own.
    scheduler: a scheduler_config.json whose sampler is written with the model's
      own schedule, such as `LoadedModel.scheduler`; None for DDIM.
    classes: names of the labels of a DiT, in their order; no other pipeline
      holds such names.
    t5_tokenizer: of a model's prompts for T5.

  Raises:
    ConfigError: the format cannot hold a part of the model, which is named.
    FileExistsError: the folder exists and is not empty.
  """
  cast = _dtype(dtype)
  check_not_quantized(params)
  with lock_output(folder), new_folder(folder) as name:
    path = pathlib.Path(name)
    if isinstance(module, LatentDiffusion):
      networks = export_networks(module, params, image_size)
      sampler = model_index.scheduler_of(module, scheduler)
      _write_json(path / "scheduler" / "scheduler_config.json", sampler)
      index = model_index.model_index(
        module, networks, tokenizer, sampler["_class_name"], t5_tokenizer
      )
      index |= model_index.class_names(module, classes)
      _write_pipeline(path, networks, index, cast, max_shard_bytes)
      own = model_index.tokenizers(module, tokenizer, t5_tokenizer)
      for name, each in own.items():
        each.save_pretrained(str(path / name))
    else:
      network = export_network(module, params, image_size, latent_scale)
      _write_network(path, network, cast, max_shard_bytes)


@checked
def save_single_file(
  module: LatentDiffusion | Module,
  params: Parameters | Mapping[str, Any],
  path: str,
  *,
  dtype: str = "fp32",
  image_size: int = 512,
  latent_scale: float | None = None,
  scheduler: Mapping[str, Any] | None = None,
) -> None:
  """Writes one .safetensors with the names of CompVis and Stability.

  What its tensors do not show (heads, scales, schedules other than the
  family's) is in its metadata. A DiT or a SiT has its authors' names, and no
  autoencoder: its files hold none, as a logged line says.

  Args:
    image_size: as of `save_pretrained`.
    latent_scale: the same.
    scheduler: the same.

  Raises:
    ConfigError: the format cannot hold a part of the model, which is named.
    FileExistsError: the file exists.
  """
  cast = _dtype(dtype)
  check_absent(path)  # before anything is computed
  check_not_quantized(params)
  if isinstance(module, LatentDiffusion) and isinstance(module.unet, DiT):
    return _save_released(module, params, path, image_size, cast)
  if isinstance(module, LatentDiffusion):
    prefixes = written_prefixes(module)
    networks = []
    for network in export_networks(module, params, image_size):
      prefix, kind = prefixes[network.name]
      networks.append((prefix, dataclasses.replace(network, kind=kind)))
    scheduler = model_index.scheduler_of(module, scheduler)
    index = model_index.unconditional_key(module)
  else:
    network = _single_network(module, params, image_size, latent_scale)
    networks, scheduler, index = [("", network)], None, {}
  tensors = {
    prefix + name: tensor
    for prefix, network in networks
    for name, tensor in _single_tensors(prefix, network, cast).items()
  }
  if scheduler is not None:
    tensors |= {name: np.zeros((0,), cast) for name in _marks(module)}
  configs = tuple(
    Submodule(
      ALIASES.get(network.name, network.name),
      network.kind,
      prefix,
      network.config,
    )
    for prefix, network in networks
  )
  own = stored(StoredConfigs(configs, scheduler, index), tensors)
  with lock_output(path):
    write_safetensors(path, tensors, metadata=FORMAT | own, is_new=True)


def _single_network(
  module: Module,
  params: Mapping[str, Any],
  side: int,
  latent_scale: float | None,
) -> ExportedNetwork:
  """Raises ConfigError for a network that has a folder alone."""
  if isinstance(module, DinoV2):
    raise ConfigError(
      "the single files of DINOv2's authors are read, but not written; save a "
      "folder by save_pretrained"
    )
  return export_network(module, params, side, latent_scale)


def _single_tensors(
  prefix: str, network: ExportedNetwork, cast: np.dtype
) -> Mapping[str, Any]:
  """A network's tensors in a single file, without its prefix."""
  tensors = network.tensors("compvis", cast)
  if not prefix.endswith("transformer."):  # of all of a text encoder
    return tensors
  return transformers_tensors(network.kind, tensors)


def _save_released(
  model: LatentDiffusion,
  params: Parameters,
  path: str,
  image_size: int,
  cast: np.dtype,
) -> None:
  """A DiT under its authors' names."""
  side = image_size // model.first_stage.stride
  tensors = released_tensors(model, params, side, cast)
  logger.warning("single files of DiT and SiT hold no autoencoder")
  with lock_output(path):
    write_safetensors(path, tensors, metadata=FORMAT, is_new=True)


def _marks(module: LatentDiffusion) -> list[str]:
  """Names of the empty tensors by which other programs know v and SNR 0."""
  is_v = module.prediction == "v" and not _implies_v(module)
  is_zero = module.schedule.zero_terminal_snr
  return ["v_pred"] * is_v + ["ztsnr"] * is_zero


def _implies_v(module: LatentDiffusion) -> bool:
  """Whether readers of single files assume v-prediction for such a model."""
  return module.unet.vector == "table"


def _write_pipeline(
  path: pathlib.Path,
  networks: list[ExportedNetwork],
  index: Mapping[str, Any],
  cast: np.dtype,
  max_shard_bytes: int,
) -> None:
  renamed = model_index.old_names(index["_class_name"])
  for network in networks:
    name = renamed.get(network.name, network.name)
    _write_network(path / name, network, cast, max_shard_bytes)
  with replace_file(path / "README.md", "utf-8") as file:
    file.write(model_index.model_card(index))
  _write_json(path / "model_index.json", index)


def _write_network(
  folder: pathlib.Path,
  network: ExportedNetwork,
  cast: np.dtype,
  max_shard_bytes: int,
) -> None:
  tensors = network.tensors("diffusers", cast)
  tensors = transformers_tensors(network.kind, tensors)
  kinds = ("clip", "open_clip", "t5", "text", "dinov2")  # of transformers
  stem = "model" if network.kind in kinds else "diffusion_pytorch_model"
  write_sharded(folder, stem, tensors=tensors, max_bytes=max_shard_bytes)
  _write_json(folder / "config.json", network.config)


def _write_json(path: pathlib.Path, value: Mapping[str, Any]) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  with replace_file(path, "utf-8") as file:
    file.write(json.dumps(value, indent=2, sort_keys=True) + "\n")


def _dtype(name: str) -> np.dtype:
  if name not in DTYPES:
    raise ConfigError(
      f"dtype {name!r} is not known; choose one of {', '.join(DTYPES)}"
    )
  return DTYPES[name]
