"""model_index.json: its pipeline, and its keys: obeyed, idle here, or named."""

import re

from ldm_jax.errors import ConfigError
from ldm_jax.pretrained.configs.strict_config import Config

_OBEYED = (
  *("transformer", "id2label"),
  *("unet", "vae", "vqvae", "text_encoder", "text_encoder_2", "bert"),
  *("text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3"),
  *("scheduler", "low_res_scheduler"),
  "force_zeros_for_empty_prompt",
  "requires_aesthetics_score",  # as the width of the U-Net's vector shows
)
# Components that filter results or make inputs, which are given here as files.
_WITHOUT_EFFECT = (
  *("safety_checker", "feature_extractor", "image_encoder", "watermarker"),
  *("requires_safety_checker", "add_watermarker", "depth_estimator"),
)


# Keys that ask for nothing at this value: diffusers' default of an upscaler.
_DEFAULTS = {"max_noise_level": 350}
# The pipelines whose transformers are sampled here, by a transformer's kind:
# others read such a network's tokens otherwise.
_PIPELINES = {
  "mmdit": r"StableDiffusion3(ControlNet|PAG)?(Img2Img|Inpaint(ing)?)?Pipeline",
  "flux": r"Flux(Control|ControlNet|Fill)?(Img2Img|Inpaint)?Pipeline",
}


def check_pipeline(kind: str, index: Config) -> None:
  """Refuses the pipeline of a transformer whose inputs are not made here.

  Such as FluxKontextPipeline, whose FluxTransformer2DModel also reads the
  tokens of an image to be edited, which no config.json says.

  Args:
    kind: of the denoiser.
    index: model_index.json; without a class, nothing is known of it.

  Raises:
    ConfigError: model_index.json is of another pipeline.
  """
  known, name = _PIPELINES.get(kind), index.get("_class_name")
  if known is None or name is None or re.fullmatch(known, str(name)):
    return
  plain = "FluxPipeline" if kind == "flux" else "StableDiffusion3Pipeline"
  edits = " (FLUX.1 Kontext, which edits images)" * ("Kontext" in str(name))
  raise ConfigError(
    f"model_index.json: _class_name={name!r}{edits} is not supported; needed "
    f"for its transformer: {plain} or its variants for images. Its networks "
    "are loaded alone by their subfolders"
  )


def unread_keys(index: Config) -> tuple[str, ...]:
  """A line for every key that asks for something that is not done."""
  return tuple(
    f"model_index.json has {key}={_shown(value)}, which is not read"
    for key, value in index.items()
    if key not in _OBEYED + _WITHOUT_EFFECT
    and not key.startswith("_")
    and _is_asking(value)
    and _DEFAULTS.get(key) != value
  )


def _is_asking(value: object) -> bool:
  """Whether a value is set; [null, null] is an absent component."""
  return value not in (None, False, [None, None])


def _shown(value: object) -> str:
  text = repr(value)
  return text if len(text) <= 60 else f"{text[:60]}..."
