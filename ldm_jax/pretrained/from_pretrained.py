"""Reads published weights: a diffusers folder, a single file, a repository."""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from jax.typing import DTypeLike

from ldm_jax.diffusion.prediction import Prediction
from ldm_jax.errors import ConfigError, WeightsError
from ldm_jax.fields.arguments import checked
from ldm_jax.latent_diffusion import LatentDiffusion, Parameters
from ldm_jax.pretrained import components, networks
from ldm_jax.pretrained.assemble import assemble
from ldm_jax.pretrained.components import Components
from ldm_jax.pretrained.hub.fetch import local_path
from ldm_jax.pretrained.networks import Module
from ldm_jax.pretrained.quantizer import check_weight_dtype, load_quantized
from ldm_jax.pretrained.single_file.submodules import PartialConfig
from ldm_jax.pretrained.single_network.add_text_encoders import (
  add_text_encoders,
)
from ldm_jax.pretrained.single_network.replace_vae import replace_vae

Loaded = tuple[LatentDiffusion, Parameters] | tuple[Module, dict[str, Any]]
Weights = Literal["raw", "ema"]


@checked
def from_pretrained(
  path: str,
  subfolder: str | None = None,
  *,
  variant: str | None = None,
  dtype: DTypeLike = "float32",
  weight_dtype: str | None = None,
  revision: str | None = None,
) -> Loaded:
  """A module and its parameters from a folder of diffusers' layout.

    vae, params = ldm_jax.from_pretrained(folder, subfolder="vae")
    posterior = vae.apply(params, images, method="encode")

  Args:
    path: a local folder, or a repository of the hub such as owner/model.
    subfolder: one network of a pipeline: "vae", "unet", "text_encoder".
    variant: of the weight files, such as "fp16".
    dtype: of parameters and computation, whatever the file has; norms, softmax
      and outputs stay float32.
    weight_dtype: "int8" or "float8_e4m3fn": of the matrices of denoiser and
      text encoders; see `LoadOptions`. A network is then computed by
      `operators.quantized_array.apply`; its own `apply` does the same with the
      memory of all matrices in full.
    revision: of the repository.

  Returns:
    (LatentDiffusion, Parameters) of a pipeline; of a single network its Linen
    module and variables. All are pure functions, for use inside jit.

  Raises:
    ConfigError: it is not found and cannot be fetched, or its config asks for
      something that is not supported.
    WeightsError: its weights are missing, malformed, or those of another
      network.
  """
  if os.path.isfile(path):
    raise ConfigError(
      f"{path!r} is a file; load it with from_single_file, or name a folder"
    )
  found = find_components(
    path, subfolder=subfolder, variant=variant, revision=revision
  )
  return _load(found, dtype, weight_dtype)


@checked
def latent_scale(
  path: str,
  subfolder: str | None = None,
  *,
  variant: str | None = None,
  revision: str | None = None,
) -> float:
  """What latents of a published autoencoder are multiplied by.

  diffusers' `scaling_factor`. A denoiser was trained on

    x0 = latent_scale(path) * normalize(vae, posterior).sample(noise)

  where `latent_normalization.normalize` subtracts the autoencoder's
  `shift_factor`, if it has one. No tensor is read.

  Args:
    path, subfolder, variant, revision: of `from_pretrained`, or a single file;
      a whole pipeline is one with its autoencoder.

  Raises:
    ConfigError, WeightsError: as `from_pretrained`, or there is no autoencoder.
  """
  found = find_components(
    path, subfolder=subfolder, variant=variant, revision=revision
  )
  if "vae" not in found.networks:
    raise ConfigError(
      f"{path!r} holds {', '.join(found.networks)}, and no autoencoder; name "
      "a folder, subfolder or file that has one"
    )
  return networks.latent_scale(found.networks["vae"].config)


@checked
def from_single_file(
  path: str,
  *,
  config: Mapping[str, PartialConfig] | str | None = None,
  prediction: Prediction | None = None,
  weights: Weights = "raw",
  dtype: DTypeLike = "float32",
  weight_dtype: str | None = None,
  vae: str | None = None,
  text_encoder: Sequence[str] = (),
) -> Loaded:
  """The same from a single file (.safetensors, .ckpt) with CompVis's names.

  Args:
    config: what shapes cannot show: by a component's name ("unet", "vae",
      "text_encoder", "scheduler") keys of its config.json; or a folder of
      diffusers' layout that has them.
    prediction: what the U-Net predicts, if the file does not say.
    weights: "ema" takes the U-Net's moving average where the file has both.
    weight_dtype: as of `from_pretrained`.
    vae: see `with_networks`.
    text_encoder: see `with_networks`.

  Raises:
    ConfigError, WeightsError: as `from_pretrained`.
  """
  if not os.path.isfile(path):
    raise ConfigError(f"there is no file {path!r}")
  found = find_components(
    path, config=config, prediction=prediction, weights=weights
  )
  found = with_networks(found, vae=vae, text_encoder=text_encoder)
  return _load(found, dtype, weight_dtype)


def find_components(
  path: str,
  *,
  subfolder: str | None = None,
  variant: str | None = None,
  revision: str | None = None,
  prediction: Prediction | None = None,
  weights: Weights = "raw",
  config: Mapping[str, PartialConfig] | str | None = None,
) -> Components:
  """The networks of a folder, file or repository; no tensor is read yet.

  `subfolder`, `variant` and `revision` are for folders and repositories, the
  other options for single files.

  Raises:
    ConfigError, WeightsError: as `from_pretrained`.
  """
  if os.path.isfile(path):
    if subfolder or variant or revision:
      raise ConfigError(
        f"{path!r} is a single file, without subfolders, variants or "
        "revisions; leave them out"
      )
    return components.open_file(
      path,
      prediction=prediction,
      config=read_configs(config) if isinstance(config, str) else config,
      is_averaged=weights == "ema",
    )
  folder = local_path(
    path, subfolder=subfolder, variant=variant, revision=revision
  )
  if prediction or config or weights != "raw":
    raise ConfigError(
      f"{path!r} is a folder, whose own configs say what it holds; leave "
      "prediction, config and weights out"
    )
  folder = os.path.join(folder, subfolder or "")
  if subfolder is None and not os.path.isdir(folder):
    raise WeightsError(f"{path!r} is neither a file nor a folder")
  if not os.path.isdir(folder):
    raise ConfigError(f"{path!r} has no subfolder {subfolder!r}")
  return components.open_folder(folder, variant)


def with_networks(
  found: Components,
  *,
  vae: str | None = None,
  text_encoder: Sequence[str] = (),
) -> Components:
  """The components with networks of other files.

  Args:
    vae: a folder, file or repository with the autoencoder to take in place of
      the model's.
    text_encoder: folders or repositories of CLIP text encoders.

  Raises:
    ConfigError, WeightsError: as `from_pretrained`.
  """
  if vae is not None:
    found = replace_vae(found, find_components(vae), vae)
  return add_text_encoders(found, text_encoder) if text_encoder else found


def read_configs(folder: str) -> dict[str, PartialConfig]:
  """The config.json of every component of a diffusers folder, by its name.

  Raises:
    ConfigError: the folder or one of its files is missing or malformed.
  """
  if not os.path.isdir(folder):
    raise ConfigError(f"config {folder!r} is not a folder")
  configs = {}
  for subfolder in (*components.NETWORKS, *components.ALIASES, "scheduler"):
    is_scheduler = subfolder == "scheduler"
    file = "scheduler_config.json" if is_scheduler else "config.json"
    path = os.path.join(folder, subfolder, file)
    if os.path.isfile(path):
      name = components.ALIASES.get(subfolder, subfolder)
      configs[name] = components.read_json(pathlib.Path(path))
  if not configs:
    raise ConfigError(f"config {folder!r} has no component's config.json")
  return configs


def _load(
  found: Components, dtype: DTypeLike, weight_dtype: str | None
) -> Loaded:
  check_weight_dtype(weight_dtype)
  if found.single is not None:
    (name,) = found.networks
    return load_quantized(found.single, name, dtype, weight_dtype)
  loaded = assemble(found, dtype, weight_dtype)
  return loaded.model, loaded.params
