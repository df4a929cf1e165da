"""The way out: our modules as a diffusers folder or as one file."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from ldm_jax.data.prompts import Prompts
from ldm_jax.data.tokens import Words
from ldm_jax.latent_diffusion import LatentDiffusion, Parameters
from ldm_jax.nn.autoencoder import Autoencoder
from ldm_jax.nn.clip import ClipText
from ldm_jax.nn.conditioner import ClassEmbedder, SizeEmbedder
from ldm_jax.nn.prompts import ClipEmbedder
from ldm_jax.nn.unet import UNet
from ldm_jax.nodes import ConfigError
from ldm_jax.pretrained import cards, schedules, texts, unets
from ldm_jax.pretrained.assemble import split_variables
from ldm_jax.pretrained.autoencoders import autoencoder_config
from ldm_jax.pretrained.networks import Module, geometry
from ldm_jax.pretrained.unet_configs import unet_config
from ldm_jax.weights import convert
from ldm_jax.weights.folders import write_sharded
from ldm_jax.weights.names import table
from ldm_jax.weights.safetensors_files import write_safetensors

MAX_BYTES = 10 * 2**30  # of a shard, as diffusers' save_pretrained has it

SCALE = 0.18215  # of SD's latents, and what a config without one means

FORMATS = {
  "fp32": np.dtype(np.float32),
  "fp16": np.dtype(np.float16),
  "bf16": np.dtype(ml_dtypes.bfloat16),
}


@dataclasses.dataclass(frozen=True)
class Network:
  """A network of ours on its way out.

  Attributes:
    name: its subfolder.
    kind: what weights/names.py calls it in single files.
    config: its config.json.
  """

  name: str
  kind: str
  module: Module
  params: Any
  config: dict[str, Any]

  def tensors(self, dialect: str, dtype: np.dtype) -> dict[str, np.ndarray]:
    """By foreign name, in `dtype`.

    Raises:
      WeightsError: the dialect has no name for a parameter.
    """
    kind = (
      "clip" if dialect == "diffusers" and "clip" in self.kind else self.kind
    )
    found = table(
      kind,
      dialect,
      convert.shapes(self.params),
      geometry(self.module, self.config),
    )
    tensors = convert.revert(found, self.params)
    return {
      name: np.ascontiguousarray(array, dtype)
      for name, array in tensors.items()
    }


def save_pretrained(
  module: LatentDiffusion | Module,
  params: Parameters | Mapping[str, Any],
  folder: str,
  *,
  words: Prompts | Words | None = None,
  side: int = 512,
  dtype: str = "fp32",
  max_bytes: int = MAX_BYTES,
) -> None:
  """Writes a folder that diffusers and transformers load as it is.

  A whole model becomes a pipeline with model_index.json, a scheduler and a
  model card; a network by itself its config.json and weights.

  Args:
    words: the tokenizers of a whole model.
    side: of the images that diffusers draws unless asked for others, in pixels.
    dtype: of the tensors: "fp32", "fp16" or "bf16".
    max_bytes: size from which weights are cut into shards.

  Raises:
    ConfigError: the format cannot hold the model; the message says what of it.
    FileExistsError: the folder is there and not empty.
  """
  path, cast = _target(folder), _format(dtype)
  if not isinstance(module, LatentDiffusion):
    _write_network(path, lone(module, params, side), cast, max_bytes)
    return
  networks = parts_of(module, params, side)
  index = cards.index(module, networks, words)
  renamed = cards.old_names(index["_class_name"])
  for network in networks:
    folder = path / renamed.get(network.name, network.name)
    _write_network(folder, network, cast, max_bytes)
  scheduler = schedules.schedule_config(module.schedule, module.prediction)
  _write_json(path / "scheduler" / "scheduler_config.json", scheduler)
  for name, tokenizer in cards.tokenizers(module, words).items():
    tokenizer.save_pretrained(str(path / name))
  (path / "README.md").write_text(cards.card(index), encoding="utf-8")
  _write_json(path / "model_index.json", index)


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
    prefixes = cards.prefixes(module)
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


def parts_of(
  module: LatentDiffusion, params: Parameters, side: int = 512
) -> list[Network]:
  """The networks of a whole model, the text encoders in their order.

  Raises:
    ConfigError: the format cannot hold one of them.
  """
  sizes = [p.width for p in module.conditioners if isinstance(p, SizeEmbedder)]
  sinusoids = sizes[0] if sizes else None
  latent_side = side // module.first_stage.stride
  unet = _unet(module.unet, params.unet, latent_side, sinusoids)
  scale = float(params.latent_scale)
  vae = _vae(module.first_stage, params.first_stage, side, scale)
  found = []
  for part in module.conditioners:
    _check_held(part)
    for one, variables in split_variables(
      part, params.conditioners[part.reads]
    ):
      found.append(lone(one, variables))
  places = cards.places(module)
  named = zip(places, found, strict=True)
  return [
    unet,
    vae,
    *(dataclasses.replace(network, name=name) for name, network in named),
  ]


def _check_held(part: Any) -> None:
  """Raises ConfigError for what foreign pipelines have no word for."""
  if isinstance(part, ClassEmbedder | ClipEmbedder | SizeEmbedder):
    return
  if part.is_pooled or part.encoder.length != 77:
    raise ConfigError(
      f"the text encoder is of length {part.encoder.length} with is_pooled="
      f"{part.is_pooled}: the pipelines of diffusers know LDM's only, of "
      "length 77 and not pooled; save its autoencoder or U-Net alone"
    )


def lone(module: Module, params: Mapping[str, Any], side: int = 512) -> Network:
  """A network by itself.

  Raises:
    ConfigError: the format cannot hold it.
  """
  if isinstance(module, UNet):
    return _unet(module, params, side // 8)
  if isinstance(module, Autoencoder):
    return _vae(module, params, side)
  variables = params["params"]
  if isinstance(module, ClipText):
    config = texts.clip_config(module)
    return Network("text_encoder", "clip", module, variables, config)
  if isinstance(module, ClassEmbedder):
    config = texts.classes_config(module)
    return Network("class_embedder", "classes", module, variables, config)
  config = texts.text_config(module)
  return Network("text_encoder", "text", module, variables, config)


def _unet(
  unet: UNet, variables: Any, side: int, sinusoids: int | None = None
) -> Network:
  params = variables["params"]
  shape = {k: tuple(v) for k, v in convert.shapes(params).items()}
  vectors = [
    shape[n][0] for n in ("vector_1/kernel", "vector/kernel") if n in shape
  ]
  contexts = {
    size[0]
    for name, size in shape.items()
    if name.endswith("attention2/k/kernel")
  }
  fed = unets.Inputs(
    channels=shape["conv_in/kernel"][2],
    size=side,
    context=contexts.pop() if contexts else None,
    vector=vectors[0] if vectors else None,
    sinusoids=sinusoids,
  )
  return Network("unet", "unet", unet, params, unet_config(unet, fed))


def _vae(
  vae: Autoencoder, variables: Any, side: int, scale: float = SCALE
) -> Network:
  config = autoencoder_config(vae, scaling_factor=scale, sample_size=side)
  return Network("vae", "autoencoder", vae, variables["params"], config)


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
  is_text = network.kind in ("clip", "open_clip")
  stem = "model" if is_text else "diffusion_pytorch_model"
  write_sharded(folder, stem, tensors=tensors, max_bytes=max_bytes)
  _write_json(folder / "config.json", network.config)


def _write_json(path: pathlib.Path, value: Mapping[str, Any]) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  text = json.dumps(value, indent=2, sort_keys=True) + "\n"
  path.write_text(text, encoding="utf-8")


def _target(folder: str) -> pathlib.Path:
  path = pathlib.Path(folder)
  if path.exists() and (not path.is_dir() or any(path.iterdir())):
    raise FileExistsError(f"{folder} is there already; choose another folder")
  path.mkdir(parents=True, exist_ok=True)
  return path


def _format(word: str) -> np.dtype:
  if word not in FORMATS:
    raise ConfigError(
      f"dtype {word!r} is not known; choose one of {', '.join(FORMATS)}"
    )
  return FORMATS[word]
