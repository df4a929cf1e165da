"""Detects FLUX.1 in a single file, by names and shapes.

Black Forest Labs' files hold the network alone; those that ComfyUI reads as a
whole hold the text encoders and the autoencoder too.
"""

import re
from collections.abc import Mapping

from ldm_jax.diffusion.prediction import Prediction
from ldm_jax.errors import WeightsError
from ldm_jax.pretrained.flux.flux_config import flux
from ldm_jax.pretrained.flux.flux_shapes import (
  FIRST,
  GUIDANCE,
  config_of_shapes,
  refuse_others,
)
from ldm_jax.pretrained.flux.folder import scheduler
from ldm_jax.pretrained.single_file import submodules
from ldm_jax.pretrained.single_file.detected import Detected
from ldm_jax.pretrained.single_file.families import FAMILIES
from ldm_jax.pretrained.single_file.submodules import PartialConfig, Submodule
from ldm_jax.pretrained.single_file.tensor_shapes import Shape
from ldm_jax.pretrained.text.encoder_shapes import encoder_config

UNET, VAE = "model.diffusion_model.", "vae."
TEXTS = {
  "text_encoder": "text_encoders.clip_l.transformer.",
  "text_encoder_2": "text_encoders.t5xxl.transformer.",
}
# Tensors of CLIP that are not used.
_IGNORED = re.compile(r"text_encoders\.\w+\.(logit_scale|text_projection)")


def detect_flux(
  shapes: Mapping[str, Shape],
  prediction: Prediction | None,
  config: Mapping[str, PartialConfig],
) -> Detected | None:
  """What a file of a FLUX.1 holds; None for other files.

  Args:
    prediction: what the caller says that it predicts.
    config: by a component's name, or "scheduler": keys of its config that
      override what the shapes show.

  Raises:
    WeightsError: it is of a network that shares names with FLUX.1, its shapes
      are not FLUX.1's, or it is said to predict something else than "flow".
  """
  prefix = next((p for p in (UNET, "") if p + FIRST in shapes), None)
  if prefix is None:
    return None
  refuse_others(shapes)
  if prediction not in (None, "flow"):
    raise WeightsError(f"FLUX predicts 'flow', not {prediction!r}")
  own = lambda name: config.get(name, {})
  network = config_of_shapes(_under(shapes, prefix), own("unet"))
  flux(network)
  vaes = [site for site in submodules.VAES if site.prefix]
  vae = submodules.find(shapes, vaes)
  texts = [
    _text(name, start, _under(shapes, start), own(name))
    for name, start in TEXTS.items()
    if any(other.startswith(start) for other in shapes)
  ]
  vae = (
    vae
    and submodules.lone_vae_submodule(vae, shapes, FAMILIES["sd1"], own("vae"))[
      0
    ]
  )  # whose scale and shift are known here
  _check_names(shapes, [prefix, *(p.prefix for p in (vae, *texts) if p)])
  is_dev = prefix + GUIDANCE in shapes
  return Detected(
    "flux-dev" if is_dev else "flux-schnell",
    Submodule("unet", "flux", prefix, network),
    vae,
    tuple(texts),
    scheduler(is_dev) | dict(own("scheduler")),
    _missing(vae is not None),
  )


def _under(shapes: Mapping[str, Shape], prefix: str) -> dict[str, Shape]:
  return {
    name.removeprefix(prefix): shape
    for name, shape in shapes.items()
    if name.startswith(prefix)
  }


def _text(
  name: str,
  prefix: str,
  shapes: Mapping[str, Shape],
  overrides: PartialConfig,
) -> Submodule:
  """A text encoder under transformers' names; FLUX projects no pooled text."""
  kind, config = encoder_config(name, shapes, overrides, is_projected=False)
  return Submodule(name, kind, prefix, config)


def _check_names(shapes: Mapping[str, Shape], prefixes: list[str]) -> None:
  """Raises WeightsError for tensors of no network known here."""
  unknown = [
    name
    for name in shapes
    if not name.startswith(tuple(prefixes)) and not _IGNORED.fullmatch(name)
  ]
  if unknown:
    raise WeightsError(
      f"{len(unknown)} tensors of no network known here ({unknown[0]}, ...); "
      "if they are not used, remove them from the file"
    )


def _missing(has_vae: bool) -> tuple[str, ...]:
  """Warns of an absent autoencoder; of text encoders see `absent_encoders`."""
  if has_vae:
    return ()
  return (
    "no autoencoder in the file: FLUX.1 needs its own (ae.safetensors); "
    "give it with vae=PATH (--vae)",
  )
