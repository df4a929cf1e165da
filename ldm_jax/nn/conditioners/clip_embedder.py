"""Prompts as Stable Diffusion hears them: through towers trained before it."""

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from ldm_jax.nn.conditioners.embedders import Condition, zero_where
from ldm_jax.nn.encoders.clip_text import ClipOutput, ClipText


class ClipEmbedder(nn.Module):
  """Token ids through one or more towers of CLIP, side by side.

  The defaults are SD 1's. SD 2 listens to OpenCLIP's ViT-H without its last
  block (`layer: penultimate` in its released configs), SDXL to CLIP's ViT-L
  and OpenCLIP's ViT-bigG without their last blocks and norms, and to the
  latter's pooled vector (Podell et al. 2023, 2.1); its refiner to ViT-bigG
  alone.

  A prompt longer than a tower is cut into chunks, each with a begin and an
  end of its own. The tower reads them one by one, and their contexts stand one
  after another.

  Attributes:
    encoders: the towers, all of one length; their contexts are concatenated
      along features.
    skips: for each, how many of its last blocks the context leaves out.
    paddings: for each, the id behind the end token: CLIP's end token itself,
      OpenCLIP's 0.
    is_normed: whether contexts go through the towers' last norms.
    is_pooled: give the last tower's pooled vector of the first chunk too.
    null: what `drop` says: the "empty" prompt, or "zeros" for context and
      vector alike, as SDXL's base has it.
    begin: the id before a prompt.
    end: the id behind it.
    reads: the batch's array of ids.
    drop_rate: how often training says the null.
    is_frozen: whether the towers stay as they are while a U-Net learns; it is
      stage two that sees to it.

  Raises:
    ValueError: at construction, if skips or paddings are not one for each
      tower, or the towers differ in length.
  """

  encoders: tuple[ClipText, ...]
  skips: tuple[int, ...] = (0,)
  paddings: tuple[int, ...] = (49407,)
  is_normed: bool = True
  is_pooled: bool = False
  null: Literal["empty", "zeros"] = "empty"
  begin: int = 49406
  end: int = 49407
  input_key: str = "tokens"
  drop_rate: float = 0.1
  is_frozen: bool = True

  has_unconditional = True

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
        f"encoders of lengths {lengths} cannot stand side by side; give all "
        "the same `length`"
      )

  @nn.compact
  def __call__(
    self,
    tokens: Int[Array, "b e l"] | Int[Array, "b l"],
    drop: Bool[Array, " b"],
  ) -> Condition:
    """Contexts of every tower and, if asked for, the pooled vector.

    Args:
      tokens: ids, for each tower its own, a whole number of chunks. Without
        an axis of towers they are of one tokenizer, and each tower gets its own
        padding behind the end.

    Raises:
      ValueError: if they are not for as many towers, or not whole chunks.
    """
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
    condition = Condition(
      context=jnp.concatenate([each.context for each in outputs], axis=-1),
      vector=outputs[-1].pooled if self.is_pooled else None,
    )
    return zero_where(condition, drop) if self.null == "zeros" else condition

  def repeat_per_encoder(
    self, tokens: Int[Array, "b l"]
  ) -> Int[Array, "b e l"]:
    """The same ids for every tower, with its own padding.

    CLIP pads with the end token: what follows the first of a chunk is padding.
    """
    most = self.encoders[0].length
    if len(self.encoders) == 1 or tokens.shape[1] % most:
      return jnp.repeat(tokens[:, None], len(self.encoders), axis=1)
    chunks = tokens.reshape(tokens.shape[0], -1, most)
    ends = jnp.cumsum(chunks == self.end, axis=-1) - (chunks == self.end)
    is_padding = (ends > 0).reshape(tokens.shape)
    rows = [jnp.where(is_padding, pad, tokens) for pad in self.paddings]
    return jnp.stack(rows, axis=1)

  def empty_prompt_ids(self, length: int) -> Int[Array, "e l"]:
    """Ids of the empty prompt in every chunk, for each tower."""
    most = self.encoders[0].length
    chunks = [
      (self.begin, self.end, *[padding] * (most - 2))
      for padding in self.paddings
    ]
    return jnp.tile(jnp.asarray(chunks, jnp.int32), (1, length // most))

  def encode(self, tokens: Int[Array, "b l"], i: int) -> ClipOutput:
    """What the i-th tower says: all chunks' states, the first one's vector."""
    count, length = tokens.shape
    encoder = self.encoders[i]
    chunks = tokens.reshape(-1, encoder.length)
    said = encoder(chunks, self.skips[i], self.is_normed)
    return ClipOutput(
      context=said.context.reshape(count, length, -1),
      pooled=said.pooled.reshape(count, -1, said.pooled.shape[-1])[:, 0],
    )
