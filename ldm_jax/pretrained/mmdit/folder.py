"""What diffusers' StableDiffusion3Pipeline can hold, and its components."""

from typing import Any

from ldm_jax.errors import ConfigError
from ldm_jax.latent_diffusion import LatentDiffusion
from ldm_jax.nn.conditioners.clip_embedder import ClipEmbedder
from ldm_jax.nn.conditioners.t5_embedder import T5Embedder
from ldm_jax.pretrained.configs.strict_config import DIFFUSERS
from ldm_jax.pretrained.mmdit.mmdit_config import TIMES
from ldm_jax.pretrained.text.families import TextEncoders, sd3_conditioners

PIPELINE = "StableDiffusion3Pipeline"
# Components that the pipeline names even where there are none.
ABSENT = {
  name: [None, None]
  for name in (
    *("text_encoder", "text_encoder_2", "text_encoder_3"),
    *("tokenizer", "tokenizer_2", "tokenizer_3"),
    *("image_encoder", "feature_extractor"),
  )
}
SCHEDULER = {
  "_class_name": "FlowMatchEulerDiscreteScheduler",
  "_diffusers_version": DIFFUSERS,
  "num_train_timesteps": TIMES,
  "shift": 3.0,
}
# What the pipeline takes from its tokenizers, and what training alone reads.
_FREE = ("begin", "end", "padding", "drop_rate", "is_frozen")


def check_texts(model: LatentDiffusion) -> None:
  """Raises ConfigError for text conditioners that are not joined as SD 3's."""
  clip = model.find_conditioner(ClipEmbedder)
  t5 = model.find_conditioner(T5Embedder)
  try:
    expected = _expected(clip, t5)
  except ConfigError:
    expected = None
  if expected is None or not _is_same(model.conditioners, expected):
    kinds = ", ".join(type(c).__name__ for c in model.conditioners) or "none"
    raise ConfigError(
      f"diffusers' {PIPELINE} and its single files join two CLIP text encoders "
      "and a T5 in one way, that of pretrained.text.families.sd3_conditioners; "
      f"this model's conditioners are other ones: {kinds}"
    )


def _expected(clip: ClipEmbedder | None, t5: T5Embedder | None) -> list[Any]:
  """The conditioners of SD 3 with the same encoders."""
  encoders = TextEncoders(t5=t5 and t5.encoder)
  context, vector = t5 and t5.encoder.width, t5 and t5.zero_vector
  if clip is not None:
    encoders = encoders._replace(clips=clip.encoders, paddings=clip.paddings)
    context = clip.context_width
    vector = sum(encoder.projection or 0 for encoder in clip.encoders)
  return sd3_conditioners(encoders, context or 0, vector or 0)


def _is_same(found: tuple[Any, ...], expected: list[Any]) -> bool:
  if [type(c) for c in found] != [type(c) for c in expected]:
    return False
  pairs = zip(found, expected, strict=True)
  return all(own == _with_free(other, own) for own, other in pairs)


def _with_free(expected: Any, own: Any) -> Any:
  """`expected` with the fields of `own` that no file holds."""
  fields = [name for name in _FREE if hasattr(own, name)]
  return expected.clone(**{name: getattr(own, name) for name in fields})
