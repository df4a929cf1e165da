"""Subfolders of the text encoders of SD3 and FLUX."""

import dataclasses
from collections.abc import Mapping

from ldm_jax.errors import ConfigError
from ldm_jax.latent_diffusion import LatentDiffusion
from ldm_jax.nn.conditioners.clip_embedder import ClipEmbedder
from ldm_jax.nn.conditioners.t5_embedder import T5Embedder
from ldm_jax.pretrained.networks import ForeignNetwork

SD3 = ("text_encoder", "text_encoder_2", "text_encoder_3")
FLUX = SD3[:2]
_T5, _CLIP, _OPEN_CLIP = range(3)
_NAMES = {_T5: "T5", _CLIP: "CLIP", _OPEN_CLIP: "OpenCLIP"}
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


def absent_encoders(networks: Mapping[str, ForeignNetwork]) -> tuple[str, ...]:
  """A line that names the text encoders which SD3 or FLUX lacks.

  None for other models, or if all are there.

  Args:
    networks: of the model, by subfolder.
  """
  backbone = networks["unet"].kind if "unet" in networks else None
  absent: dict[str, int] = {}
  for kind, place in _PLACES.get(backbone, {}).items():
    if place not in networks:
      absent.setdefault(place, kind)
  if not absent:
    return ()
  listed = ", ".join(f"{place} ({_NAMES[k]})" for place, k in absent.items())
  is_needed = backbone == "flux" and _T5 in absent.values()
  zeros = "" if is_needed else ", for which zeros stand"
  options = ["text_encoder=[FOLDER, ...] (--text_encoder)"]
  if set(absent.values()) - {_T5}:
    options.append("tokenizer=FOLDER (--tokenizer)")
  if _T5 in absent.values():
    options.append("t5_tokenizer=FOLDER (--t5_tokenizer)")
  return (f"the model has no {listed}{zeros}; give {', '.join(options)}",)


def for_backbone(backbone: str, network: ForeignNetwork) -> ForeignNetwork:
  """The text encoder as the model reads it: FLUX projects no pooled text."""
  if backbone != "flux" or network.kind != "clip":
    return network
  config = {**network.config, "architectures": ["CLIPTextModel"]}
  return dataclasses.replace(network, config=config)
