"""Prompts through pretrained text encoders, as in Stable Diffusion."""

from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ldm_jax.fields.limits import Count, Fraction, Natural
from ldm_jax.nn.conditioners.embedded_text import EmbeddedText
from ldm_jax.nn.conditioners.embedders import Condition, zero_where
from ldm_jax.nn.encoders.clip_text import ClipOutput, ClipText


class ClipEmbedder(nn.Module):
  """Token ids through one or more CLIP text encoders.

  The defaults are SD 1's. SD 2 takes OpenCLIP's ViT-H without its last block
  (`layer: penultimate` in its released configs), SDXL CLIP's ViT-L and
  OpenCLIP's ViT-bigG without their last blocks and norms, with the latter's
  pooled vector (Podell et al. 2023, 2.1), and its refiner ViT-bigG alone. SD3
  takes CLIP's ViT-L and OpenCLIP's ViT-bigG in the same way, both pooled
  vectors, and zeros up to the width of T5 (Esser et al. 2024, section 4); FLUX
  the pooled vector of CLIP's ViT-L alone.

  A prompt longer than an encoder's length is cut into chunks, each with its own
  begin and end token. Chunks are encoded one by one, and their contexts are
  concatenated along the tokens.

  Attributes:
    encoders: the text encoders, all of one length; their contexts are
      concatenated along features.
    skips: for each, how many of its last blocks the context skips (CLIP skip
      less one).
    paddings: for each, the id after the end token: CLIP's is the end token
      itself, OpenCLIP's 0.
    is_normed: whether the encoders' last norms are applied to contexts.
    is_pooled: return the last encoder's pooled vector of the first chunk too.
    is_all_pooled: that vector is of all encoders, concatenated.
    has_context: return a context; if not, only the pooled vector.
    context_width: features of the context, the last of them zeros; None for
      those of the encoders.
    zero_tokens: tokens of zeros after the context, in place of an absent T5.
    null: the unconditional input: the "empty" prompt, or "zeros" for context
      and vector, as in SDXL's base.
    begin: the id before a prompt.
    end: the id after it.
    input_key: of the batch's array of ids.
    drop_rate: fraction of training examples with the unconditional input.
    is_frozen: whether the encoders are frozen while a U-Net is trained.

  Raises:
    ValueError: at construction, if skips or paddings are not one for each
      encoder, the encoders differ in length, or there would be no output.
  """

  encoders: tuple[ClipText, ...]
  skips: tuple[Natural, ...] = (0,)
  paddings: tuple[Natural, ...] = (49407,)
  is_normed: bool = True
  is_pooled: bool = False
  null: Literal["empty", "zeros"] = "empty"
  begin: Natural = 49406
  end: Natural = 49407
  input_key: str = "tokens"
  drop_rate: Fraction = 0.1
  is_frozen: bool = True
  is_all_pooled: bool = False
  has_context: bool = True
  context_width: Count | None = None
  zero_tokens: Natural = 0

  has_unconditional = True

  @property
  def max_chunks(self) -> int | None:
    """Chunks of a prompt that are read; None for no limit.

    One in SD 3 and FLUX, which cut longer prompts.
    """
    return 1 if self.is_all_pooled or not self.has_context else None

  def __post_init__(self):
    super().__post_init__()
    counts = [len(self.encoders), len(self.skips), len(self.paddings)]
    if len(set(counts)) > 1 or not self.encoders:
      raise ValueError(
        f"{counts[0]} encoders, {counts[1]} skips, {counts[2]} paddings; give "
        "at least one encoder, and a skip and a padding for each"
      )
    lengths = [encoder.length for encoder in self.encoders]
    if len(set(lengths)) > 1:
      raise ValueError(
        f"encoders of lengths {lengths} cannot be concatenated; give all the "
        "same `length`"
      )
    if not (self.has_context or self.is_pooled):
      raise ValueError("has_context or is_pooled is needed; both are false")
    total = sum(encoder.width for encoder in self.encoders)
    if self.context_width is not None and self.context_width < total:
      raise ValueError(
        f"context_width={self.context_width} is less than the encoders' {total}"
      )

  @nn.compact
  def __call__(
    self,
    tokens: Int[Array, "b e l"] | Int[Array, "b l"] | EmbeddedText,
    drop: Bool[Array, " b"],
  ) -> Condition:
    """The context of all encoders, and the pooled vector if `is_pooled`.

    Args:
      tokens: ids for each encoder, a whole number of chunks. Without an axis of
        encoders they are of one tokenizer, and each encoder gets its own
        padding after the end. Or the outputs themselves.

    Raises:
      ValueError: tokens for another number of encoders, or not whole chunks.
    """
    if isinstance(tokens, EmbeddedText):
      if not self.is_initializing():
        return tokens.condition(self, drop)
      empty = self.empty_prompt_ids(self.encoders[0].length)
      tokens = jnp.broadcast_to(empty, (len(drop), *empty.shape))
    tokens = tokens if tokens.ndim == 3 else self.repeat_per_encoder(tokens)
    _, count, length = tokens.shape
    most = self.encoders[0].length
    if count != len(self.encoders) or length % most or not length:
      raise ValueError(
        f"tokens for {count} encoders, {length} each; give "
        f"{len(self.encoders)} rows of ids, padded to a multiple of {most}"
      )
    if self.null == "empty":
      empty = self.empty_prompt_ids(length)
      tokens = jnp.where(drop[:, None, None], empty, tokens)
    outputs = [self.encode(tokens[:, i], i) for i in range(count)]
    pooled = [
      each.pooled for each in outputs[0 if self.is_all_pooled else -1 :]
    ]
    condition = Condition(
      context=self.join(outputs) if self.has_context else None,
      vector=jnp.concatenate(pooled, axis=-1) if self.is_pooled else None,
    )
    return zero_where(condition, drop) if self.null == "zeros" else condition

  def join(self, outputs: Sequence[ClipOutput]) -> Float[Array, "b l d"]:
    """The contexts of all encoders, with zeros around them."""
    joined = jnp.concatenate([each.context for each in outputs], axis=-1)
    missing = (self.context_width or joined.shape[-1]) - joined.shape[-1]
    return jnp.pad(joined, [(0, 0), (0, self.zero_tokens), (0, missing)])

  def repeat_per_encoder(
    self, tokens: Int[Array, "b l"]
  ) -> Int[Array, "b e l"]:
    """The same ids for every encoder, each with its own padding.

    CLIP pads with the end token: after a chunk's first, all ids are padding.
    """
    most = self.encoders[0].length
    if len(self.encoders) == 1 or tokens.shape[1] % most:
      return jnp.repeat(tokens[:, None], len(self.encoders), axis=1)
    chunks = tokens.reshape(tokens.shape[0], -1, most)
    ends = jnp.cumsum(chunks == self.end, axis=-1) - (chunks == self.end)
    is_padding = (ends > 0).reshape(tokens.shape)
    rows = [jnp.where(is_padding, pad, tokens) for pad in self.paddings]
    return jnp.stack(rows, axis=1)

  def feature_weights(
    self, weights: Float[Array, "b e l"]
  ) -> Float[Array, "b m d"]:
    """Weights of each encoder's tokens, for the features of the context."""
    widths = jnp.asarray([encoder.width for encoder in self.encoders])
    total = sum(encoder.width for encoder in self.encoders)
    wide = jnp.repeat(weights, widths, axis=1, total_repeat_length=total)
    missing = (self.context_width or total) - total
    around = [(0, 0), (0, self.zero_tokens), (0, missing)]
    return jnp.pad(wide.swapaxes(1, 2), around, constant_values=1.0)

  def empty_prompt_ids(self, length: int) -> Int[Array, "e l"]:
    """Ids of the empty prompt in every chunk, for each encoder."""
    most = self.encoders[0].length
    chunks = [
      (self.begin, self.end, *[padding] * (most - 2))
      for padding in self.paddings
    ]
    return jnp.tile(jnp.asarray(chunks, jnp.int32), (1, length // most))

  def encode(self, tokens: Int[Array, "b l"], i: int) -> ClipOutput:
    """The i-th encoder's states of all chunks, and the first one's vector."""
    count, length = tokens.shape
    encoder = self.encoders[i]
    chunks = tokens.reshape(-1, encoder.length)
    output = encoder(chunks, self.skips[i], self.is_normed)
    return ClipOutput(
      context=output.context.reshape(count, length, -1),
      pooled=output.pooled.reshape(count, -1, output.pooled.shape[-1])[:, 0],
    )
