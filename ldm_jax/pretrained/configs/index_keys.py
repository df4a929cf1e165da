"""The keys of model_index.json: obeyed, without effect here, or named."""

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
