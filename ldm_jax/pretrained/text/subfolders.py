"""Subfolders of the text encoders of SD3 and FLUX."""

import dataclasses

from ldm_jax.errors import ConfigError
from ldm_jax.latent_diffusion import LatentDiffusion
from ldm_jax.nn.conditioners.clip_embedder import ClipEmbedder
from ldm_jax.nn.conditioners.t5_embedder import T5Embedder
from ldm_jax.pretrained.networks import ForeignNetwork

SD3 = ("text_encoder", "text_encoder_2", "text_encoder_3")
FLUX = SD3[:2]
_T5, _CLIP, _OPEN_CLIP = range(3)
_PLACES = {
  "mmdit": {_CLIP: SD3[0], _OPEN_CLIP: SD3[1], _T5: SD3[2]},
  "flux": {_CLIP: FLUX[0], _OPEN_CLIP: FLUX[0], _T5: FLUX[1]},
}


def subfolders(model: LatentDiffusion) -> list[str] | None:
  """Of the text encoders that are there, in their order.

  None for a model whose text encoders are not joined as SD3's or FLUX's.
  """
  clip = model.find_conditioner(ClipEmbedder)
  t5 = model.find_conditioner(T5Embedder)
  is_sd3 = clip.is_all_pooled if clip else t5 is not None and t5.zero_tokens > 0
  if t5 is None and not is_sd3:
    return None
  last = SD3[2:] if is_sd3 else FLUX[1:]
  found = list(SD3[: len(clip.encoders)]) if clip else []
  return [*found, *last] if t5 else found


def subfolder_of(backbone: str, network: ForeignNetwork, path: str) -> str:
  """The subfolder of a text encoder that is given on its own.

  Args:
    backbone: "mmdit" or "flux".
    path: of the text encoder, for errors.

  Raises:
    ConfigError: it is no text encoder of such a model.
  """
  is_open = network.config.get("hidden_act") == "gelu"
  kinds = {"t5": _T5, "clip": _OPEN_CLIP if is_open else _CLIP}
  if network.kind not in kinds:
    raise ConfigError(
      f"text_encoder {path!r} holds a network of kind {network.kind!r}; needed "
      "is a CLIP text encoder or a T5 (--text_encoder)"
    )
  return _PLACES[backbone][kinds[network.kind]]


def for_backbone(backbone: str, network: ForeignNetwork) -> ForeignNetwork:
  """The text encoder as the model reads it: FLUX projects no pooled text."""
  if backbone != "flux" or network.kind != "clip":
    return network
  config = {**network.config, "architectures": ["CLIPTextModel"]}
  return dataclasses.replace(network, config=config)
