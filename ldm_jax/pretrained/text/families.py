"""How SD3 and FLUX join their text encoders."""

from typing import NamedTuple

from ldm_jax.data.text.tokenizers import Tokenizer
from ldm_jax.errors import ConfigError
from ldm_jax.nn.conditioners.clip_embedder import ClipEmbedder
from ldm_jax.nn.conditioners.t5_embedder import T5Embedder
from ldm_jax.nn.encoders.clip_text import ClipText
from ldm_jax.nn.encoders.t5 import T5Encoder

SD3_LENGTH = 256  # ids of a prompt for T5
FLUX_LENGTHS = {True: 512, False: 256}  # by whether guidance is embedded: dev


class TextEncoders(NamedTuple):
  """The text encoders of a model and what its tokenizers say.

  Attributes:
    clips: CLIP's, in their order.
    paddings: for each, the id after the end token.
    t5: None where it is missing.
    special: of CLIP, the ids of begin and end; None for those published.
    t5_tokenizer: None for the ids of the published one.
  """

  clips: tuple[ClipText, ...] = ()
  paddings: tuple[int, ...] = ()
  t5: T5Encoder | None = None
  special: tuple[int, int] | None = None
  t5_tokenizer: Tokenizer | None = None


def sd3_conditioners(
  encoders: TextEncoders, context: int, vector: int
) -> list[ClipEmbedder | T5Embedder]:
  """SD3's text conditioners  (Esser et al. 2024, section 4).

  The tokens of CLIP's ViT-L and OpenCLIP's ViT-bigG before their last blocks,
  joined along features and filled up with zeros, then those of T5; the vector
  is both pooled texts. Zeros stand for a missing T5, or for both CLIPs.

  Args:
    context, vector: features that the backbone reads.

  Raises:
    ConfigError: they are not the text encoders of such a model.
  """
  clips, t5 = encoders.clips, encoders.t5
  _check_t5(t5, context)
  if not clips and t5 is not None:
    length = ClipText().length
    missing = {"zero_tokens": length, "zero_vector": vector}
    return [_t5_embedder(encoders, SD3_LENGTH).clone(**missing)]
  pooled = sum(clip.projection or 0 for clip in clips)
  widths = sum(clip.width for clip in clips)
  if len(clips) != 2 or pooled != vector or widths > context:
    raise ConfigError(
      f"the model reads {context} features of text and {vector} pooled ones of "
      f"two CLIP text encoders; it has {len(clips)} of {widths} and {pooled}: "
      "give text_encoder=[FOLDER, FOLDER] (--text_encoder), each a "
      "CLIPTextModelWithProjection"
    )
  embedder = _clip_embedder(encoders).clone(
    skips=(1, 1), is_normed=False, is_all_pooled=True, context_width=context
  )
  if t5 is None:
    return [embedder.clone(zero_tokens=SD3_LENGTH)]
  return [embedder, _t5_embedder(encoders, SD3_LENGTH)]


def flux_conditioners(
  encoders: TextEncoders, context: int, vector: int, length: int = 512
) -> list[ClipEmbedder | T5Embedder]:
  """FLUX.1's text conditioners: T5's tokens, and CLIP's pooled vector.

  Zeros stand for a missing CLIP.

  Args:
    context, vector: features that the backbone reads.
    length: ids of a prompt for T5.

  Raises:
    ConfigError: they are not the text encoders of such a model.
  """
  clips, t5 = encoders.clips, encoders.t5
  if t5 is None:
    raise ConfigError(
      f"the model reads {context} features of text from T5, which it lacks; "
      "give a T5EncoderModel with text_encoder=[PATH] (--text_encoder)"
    )
  _check_t5(t5, context)
  embedder = _t5_embedder(encoders, length)
  if not clips:
    return [embedder.clone(zero_vector=vector)]
  pooled = [clip.projection or clip.width for clip in clips]
  if pooled != [vector]:
    raise ConfigError(
      f"the model reads {vector} features of one pooled text; its CLIP text "
      f"encoders have {pooled}: give one with text_encoder=[FOLDER] "
      "(--text_encoder)"
    )
  return [_clip_embedder(encoders).clone(has_context=False), embedder]


def _check_t5(t5: T5Encoder | None, context: int) -> None:
  """Raises ConfigError for a T5 of another width than the backbone reads."""
  if t5 is not None and t5.width != context:
    raise ConfigError(
      f"the model reads {context} features of text, and its T5 has {t5.width}; "
      "give another with text_encoder=[PATH] (--text_encoder)"
    )


def _clip_embedder(encoders: TextEncoders) -> ClipEmbedder:
  count = len(encoders.clips)
  embedder = ClipEmbedder(
    encoders.clips, (0,) * count, encoders.paddings, is_pooled=True
  )
  if encoders.special is None:
    return embedder
  begin, end = encoders.special
  return embedder.clone(begin=begin, end=end)


def _t5_embedder(encoders: TextEncoders, length: int) -> T5Embedder:
  embedder = T5Embedder(encoders.t5, length)
  return with_t5_tokens(embedder, encoders.t5_tokenizer)


def with_t5_tokens(
  embedder: T5Embedder, tokenizer: Tokenizer | None
) -> T5Embedder:
  """The embedder with the end token and the padding of its own tokenizer."""
  if tokenizer is None:
    return embedder
  own = tokenizer.backend
  return embedder.clone(end=own.eos_token_id, padding=own.pad_token_id)
