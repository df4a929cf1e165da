"""Another autoencoder in place of a model's own, or where it has none."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike

from ldm_jax.errors import ConfigError
from ldm_jax.loaded_model import LoadedModel
from ldm_jax.nn.latent_normalization import BatchStatistics
from ldm_jax.pretrained.components import Components
from ldm_jax.pretrained.configs import unet_reader
from ldm_jax.pretrained.configs.defaults import SCALING_FACTOR
from ldm_jax.pretrained.configs.latent_statistics import TRANSFORMER_LATENTS
from ldm_jax.pretrained.networks import ForeignNetwork, latent_scale, load
from ldm_jax.pretrained.single_file.families import FAMILIES


def vae_of(source: Components, path: str) -> ForeignNetwork:
  """The autoencoder among the networks of a file or folder.

  Raises:
    ConfigError: there is none.
  """
  if "vae" not in source.networks:
    raise ConfigError(
      f"vae {path!r} has no autoencoder; it has {', '.join(source.networks)} "
      "(--vae)"
    )
  return source.networks["vae"]


def replace_vae(
  components: Components, source: Components, path: str
) -> Components:
  """The components with the autoencoder of `source`.

  A file of an autoencoder alone does not say what its latents are multiplied
  by: the model's own scale stays, or that of its family.

  Args:
    path: of `source`, for messages.

  Raises:
    ConfigError: `source` has no autoencoder, or the components no U-Net.
  """
  network = vae_of(source, path)
  if "unet" not in components.networks:
    raise ConfigError(
      "vae is for a model with a U-Net, and this is a single "
      f"{', '.join(components.networks)}; leave it out (--vae)"
    )
  if source.is_scale_unknown:
    config = dict(network.config) | _own_statistics(components)
    network = dataclasses.replace(network, config=config)
  # The line is about a file that lacks what is given here.
  warnings = tuple(w for w in components.warnings if "--vae" not in w)
  networks = dict(components.networks) | {"vae": network}
  return dataclasses.replace(components, networks=networks, warnings=warnings)


def _own_statistics(components: Components) -> dict[str, float | None]:
  """Scale and shift of a model's latents, by its autoencoder or its family."""
  own = components.networks.get("vae")
  kind = components.networks["unet"].kind
  if own is not None and own.kind == "autoencoder":
    shift = own.config.get("shift_factor")
    return {"scaling_factor": latent_scale(own.config), "shift_factor": shift}
  if own is not None and own.kind == "dc_autoencoder":
    return {"scaling_factor": latent_scale(own.config)}
  if kind in TRANSFORMER_LATENTS:
    return dict(TRANSFORMER_LATENTS[kind])
  return {"scaling_factor": _family_scale(components)}


def _family_scale(components: Components) -> float:
  """The scale of the latents of a U-Net's or a DiT's family."""
  unet = components.networks["unet"]
  if unet.kind == "dit":
    return SCALING_FACTOR
  inputs = unet_reader.inputs(unet.config)
  family = components.family or ("sdxl" if inputs.sinusoids else "sd1")
  scale = FAMILIES[family].scale
  if scale is None:
    raise ConfigError(
      f"the scale of the latents of a model of family {family} is not known; "
      "give the folder of an autoencoder, whose config.json has its "
      "scaling_factor (--vae)"
    )
  return scale


def with_vae(
  loaded: LoadedModel,
  source: Components,
  path: str,
  dtype: DTypeLike = "float32",
) -> LoadedModel:
  """A run's model with another autoencoder.

  Of a file of an autoencoder alone, scale and statistics of the latents are
  the run's; FLUX.2's file has its statistics itself.

  Raises:
    ConfigError: `source` has none, or one of other latents than the model's.
    WeightsError: its tensors do not fit its config.
  """
  network = vae_of(source, path)
  own = loaded.model.first_stage
  first_stage, params = load(network, dtype)
  scale = latent_scale(network.config)
  found, needed = (
    (stage.stride, stage.latent_channels) for stage in (first_stage, own)
  )
  if found != needed:
    raise ConfigError(
      f"vae {path!r} has stride {found[0]} and {found[1]} latent channels; "
      f"the model was trained on latents of stride {needed[0]} and "
      f"{needed[1]} channels (--vae)"
    )
  if source.is_scale_unknown:
    scale = float(loaded.params.latent_scale)
    first_stage = _normalized_as(first_stage, own, path)
  return dataclasses.replace(
    loaded,
    model=dataclasses.replace(loaded.model, first_stage=first_stage),
    params=loaded.params.replace(
      first_stage=params, latent_scale=jnp.float32(scale)
    ),
  )


def _normalized_as(stage: Any, own: Any, path: str) -> Any:
  """The autoencoder with the run's statistics, unless its file has some.

  Raises:
    ConfigError: it is of a kind without statistics, and the run's has some.
  """
  normalization = getattr(own, "normalization", None)
  if hasattr(stage, "normalization"):
    has_own = isinstance(stage.normalization, BatchStatistics)
    return stage if has_own else stage.clone(normalization=normalization)
  if normalization is None:
    return stage
  raise ConfigError(
    f"the run's latents are normalised by {normalization}, which vae {path!r}, "
    f"a {type(stage).__name__}, cannot have; give an autoencoder of the run's "
    "kind (--vae)"
  )
