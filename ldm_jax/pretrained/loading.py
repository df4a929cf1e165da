"""The way in for foreign weights: a folder, a file or a repository."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any, Literal

from jax.typing import DTypeLike

from ldm_jax.data.text import tokenizers
from ldm_jax.data.text.clip_prompts import ClipPrompts, PromptSyntax
from ldm_jax.diffusion.prediction import Prediction
from ldm_jax.errors import ConfigError, WeightsError
from ldm_jax.latent_diffusion import LatentDiffusion, Parameters
from ldm_jax.loaded_model import LoadedModel
from ldm_jax.nn.conditioners.clip_embedder import ClipEmbedder
from ldm_jax.pretrained import components, hub
from ldm_jax.pretrained.assemble import assemble, restated
from ldm_jax.pretrained.components import Components
from ldm_jax.pretrained.networks import Module, load
from ldm_jax.pretrained.single_file.submodules import Given

Loaded = tuple[LatentDiffusion, Parameters] | tuple[Module, dict[str, Any]]
Weights = Literal["raw", "ema"]


def from_pretrained(
  path: str,
  subfolder: str | None = None,
  *,
  variant: str | None = None,
  dtype: DTypeLike = "float32",
  revision: str | None = None,
) -> Loaded:
  """A module and its parameters from a folder of diffusers' layout.

    vae, params = ldm_jax.from_pretrained(folder, subfolder="vae")
    posterior = vae.apply(params, images, method="encode")

  Args:
    path: a local folder, or a repository of the hub such as owner/model.
    subfolder: one network of a pipeline: "vae", "unet", "text_encoder".
    variant: of the weights' files, such as "fp16".
    dtype: of parameters and computation, whatever the file has; norms, softmax
      and results stay float32.
    revision: of the repository.

  Returns:
    (LatentDiffusion, Parameters) of a pipeline; of a single network its Linen
    module and variables. All are pure functions, to be used inside jit.

  Raises:
    ConfigError: it is not here and cannot be had, or it asks for what we do
      not have.
    WeightsError: its weights are missing, malformed, or those of another
      network.
  """
  if os.path.isfile(path):
    raise ConfigError(
      f"{path!r} is a file; load it with from_single_file, or name a folder"
    )
  where = {"subfolder": subfolder, "variant": variant, "revision": revision}
  return _loaded(find(path, **where), dtype)


def from_single_file(
  path: str,
  *,
  config: Mapping[str, Given] | str | None = None,
  prediction: Prediction | None = None,
  weights: Weights = "raw",
  dtype: DTypeLike = "float32",
) -> Loaded:
  """The same from a single file (.safetensors, .ckpt) of CompVis's names.

  Args:
    config: what shapes cannot tell: by a part's name ("unet", "vae",
      "text_encoder", "scheduler") keys of its config.json; or a folder of
      diffusers' layout that has them.
    prediction: what the U-Net answers, if the file does not say.
    weights: "ema" takes the U-Net's moving average where the file has both.

  Raises:
    ConfigError, WeightsError: as `from_pretrained`.
  """
  if not os.path.isfile(path):
    raise ConfigError(f"there is no file {path!r}")
  told = {"config": config, "prediction": prediction, "weights": weights}
  return _loaded(find(path, **told), dtype)


def find(
  path: str,
  *,
  subfolder: str | None = None,
  variant: str | None = None,
  revision: str | None = None,
  prediction: Prediction | None = None,
  weights: Weights = "raw",
  config: Mapping[str, Given] | str | None = None,
) -> Components:
  """The networks of a folder, file or repository; nothing of them is read yet.

  The first three are of folders and repositories, the others of single files.

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
      config=configs_of(config) if isinstance(config, str) else config,
      is_averaged=weights == "ema",
    )
  folder = hub.local(
    path, subfolder=subfolder, variant=variant, revision=revision
  )
  if prediction or config or weights != "raw":
    raise ConfigError(
      f"{path!r} is a folder, which says itself what it holds; leave "
      "prediction, config and weights out"
    )
  folder = os.path.join(folder, subfolder or "")
  if subfolder is None and not os.path.isdir(folder):
    raise WeightsError(f"{path!r} is neither a file nor a folder")
  if not os.path.isdir(folder):
    raise ConfigError(f"{path!r} has no subfolder {subfolder!r}")
  return components.open_folder(folder, variant)


def with_tokenizer(opened: LoadedModel, folder: str) -> LoadedModel:
  """The model with a CLIP tokenizer's folder, which single files lack.

  Raises:
    ConfigError: the model has no towers of CLIP.
    ValueError: the folder has no tokenizer.
  """
  parts = opened.model.conditioners
  part = next((p for p in parts if isinstance(p, ClipEmbedder)), None)
  if part is None:
    raise ConfigError("the model has no towers of CLIP; leave --tokenizer out")
  words = tokenizers.load(folder, part.encoders[0].length)
  # CLIP's own tower is padded with its end token, whatever its number here.
  end = words.backend.eos_token_id
  ids = [end if padding == part.end else padding for padding in part.paddings]
  syntaxes = tuple(PromptSyntax(words, padding) for padding in ids)
  return restated(opened, ClipPrompts(syntaxes))


def configs_of(folder: str) -> dict[str, Given]:
  """The config.json of every part of a diffusers folder.

  Raises:
    ConfigError: the folder or one of its files is missing or malformed.
  """
  if not os.path.isdir(folder):
    raise ConfigError(f"config {folder!r} is no folder")
  found = {}
  for place in (*components.NETWORKS, *components.ALIASES, "scheduler"):
    file = "scheduler_config.json" if place == "scheduler" else "config.json"
    path = os.path.join(folder, place, file)
    if os.path.isfile(path):
      name = components.ALIASES.get(place, place)
      found[name] = components.read_json(pathlib.Path(path))
  if not found:
    raise ConfigError(f"config {folder!r} has no part's config.json")
  return found


def _loaded(found: Components, dtype: DTypeLike) -> Loaded:
  if found.lone is not None:
    return load(found.lone, dtype)
  opened = assemble(found, dtype)
  return opened.model, opened.params
