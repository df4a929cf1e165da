"""What diffusers' FluxPipeline can hold, and its components."""

from collections.abc import Sequence
from typing import Any

from ldm_jax.errors import ConfigError
from ldm_jax.latent_diffusion import LatentDiffusion
from ldm_jax.nn.conditioners.clip_embedder import ClipEmbedder
from ldm_jax.nn.conditioners.conditioner import Conditioner
from ldm_jax.nn.conditioners.source_image import SourceImage
from ldm_jax.nn.conditioners.spatial import MaskedImage
from ldm_jax.nn.conditioners.t5_embedder import T5Embedder
from ldm_jax.nn.flux.packing import SIDE
from ldm_jax.pretrained.configs.concat_inputs import concat_conditioners
from ldm_jax.pretrained.configs.strict_config import DIFFUSERS
from ldm_jax.pretrained.configs.unet_reader import Inputs
from ldm_jax.pretrained.flux.flux_config import FLOW_STEPS
from ldm_jax.pretrained.text.families import (
  FLUX_LENGTHS,
  TextEncoders,
  flux_conditioners,
)

PLAIN = "FluxPipeline"
PIPELINES = (PLAIN, "FluxFillPipeline", "FluxControlPipeline")
_TEXTS = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
_IMAGES = ("image_encoder", "feature_extractor")  # of the first pipeline alone
# What the pipeline takes from its tokenizers, and what training alone reads.
_FREE = ("begin", "end", "padding", "drop_rate", "is_frozen")


def absent(kind: str) -> dict[str, list[None]]:
  """Components that a pipeline names even where there are none."""
  names = _TEXTS + _IMAGES * (kind == PLAIN)
  return {name: [None, None] for name in names}


def scheduler(is_dev: bool) -> dict[str, Any]:
  """scheduler_config.json of FLUX.1-dev, which shifts by size, or -schnell."""
  return {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "_diffusers_version": DIFFUSERS,
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "max_image_seq_len": 4096,
    "max_shift": 1.15,
    "num_train_timesteps": FLOW_STEPS,
    "shift": 3.0 if is_dev else 1.0,
    "use_dynamic_shifting": is_dev,
  }


def pipeline(model: LatentDiffusion, channels: int) -> str:
  """The class of diffusers that samples from a FLUX.1.

  Args:
    channels: of the tokens that it reads.

  Raises:
    ConfigError: there is none for such a model.
  """
  images = [part for part in model.conditioners if _is_image(part)]
  latents, stride = model.first_stage.latent_channels, model.first_stage.stride
  own = concat_conditioners(
    {}, Inputs(channels // SIDE**2, is_flux=True), latents, stride
  )
  if images != own:
    has, needs = (
      ", ".join(type(part).__name__ for part in each) or "nothing"
      for each in (images, own)
    )
    raise ConfigError(
      f"a FLUX that reads {channels} channels concatenates {needs} with its "
      f"latents, as pretrained.configs.concat_inputs makes it; this model {has}"
    )
  return PIPELINES[1 + isinstance(own[0], SourceImage)] if own else PLAIN


def _is_image(part: Conditioner) -> bool:
  return isinstance(part, MaskedImage | SourceImage)


def check_texts(model: LatentDiffusion) -> None:
  """Raises ConfigError for text conditioners that are not joined as FLUX's."""
  length = FLUX_LENGTHS[model.unet.embeds_guidance]
  texts = [part for part in model.conditioners if not _is_image(part)]
  if not _is_flux(texts, length):
    kinds = ", ".join(type(c).__name__ for c in texts) or "none"
    raise ConfigError(
      f"diffusers' {PLAIN} and its single files read a CLIP's pooled vector "
      f"and {length} tokens of a T5, joined by "
      "pretrained.text.families.flux_conditioners; this model's conditioners "
      f"are other ones: {kinds}"
    )


def _is_flux(found: Sequence[Conditioner], length: int) -> bool:
  """Whether conditioners are those of `flux_conditioners`."""
  clips = [part for part in found if isinstance(part, ClipEmbedder)]
  t5s = [part for part in found if isinstance(part, T5Embedder)]
  if len(t5s) != 1 or len(clips) > 1:
    return False
  encoders, vector = TextEncoders(t5=t5s[0].encoder), t5s[0].zero_vector or 0
  if clips:
    own = clips[0]
    encoders = encoders._replace(clips=own.encoders, paddings=own.paddings)
    vector = own.encoders[0].projection or own.encoders[0].width
  width = encoders.t5.width
  try:
    expected = flux_conditioners(encoders, width, vector, length)
  except ConfigError:
    return False
  return len(found) == len(expected) and all(
    type(own) is type(other) and own == _with_free(other, own)
    for own, other in zip(found, expected, strict=True)
  )


def _with_free(expected: Any, own: Any) -> Any:
  """`expected` with the fields of `own` that no file holds."""
  fields = [name for name in _FREE if hasattr(own, name)]
  return expected.clone(**{name: getattr(own, name) for name in fields})
