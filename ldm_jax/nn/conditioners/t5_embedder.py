"""Prompts through a pretrained T5 encoder, as in SD3 and FLUX."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ldm_jax.fields.limits import Count, Fraction, Natural
from ldm_jax.nn.conditioners.embedded_text import EmbeddedText
from ldm_jax.nn.conditioners.embedders import Condition
from ldm_jax.nn.encoders.t5 import T5Encoder


class T5Embedder(nn.Module):
  """Token ids through a T5 encoder; its states are the context.

  The unconditional input is the empty prompt: the end token and padding. All
  tokens are attended to, padding too, as in SD3 and FLUX.

  Attributes:
    length: ids of a prompt, end token included; SD3 and FLUX.1 schnell read
      256, FLUX.1 dev 512.
    end, padding: the ids after a prompt.
    zero_tokens: tokens of zeros before the context, in place of absent CLIP
      encoders.
    zero_vector: features of a vector of zeros, in place of theirs; None for no
      vector.
    input_key: of the batch's array of ids.
    drop_rate: fraction of training examples with the unconditional input.
    is_frozen: whether the encoder is frozen while the backbone is trained.
  """

  encoder: T5Encoder
  length: Count = 256
  end: Natural = 1
  padding: Natural = 0
  zero_tokens: Natural = 0
  zero_vector: Count | None = None
  input_key: str = "t5_tokens"
  drop_rate: Fraction = 0.1
  is_frozen: bool = True

  has_unconditional = True

  @property
  def scanned_blocks(self) -> list[list[str]]:
    """The encoder's; see `stack_blocks`."""
    runs = self.encoder.scanned_blocks
    return [[f"encoder/{name}" for name in names] for names in runs]

  @nn.compact
  def __call__(
    self, tokens: Int[Array, "b l"] | EmbeddedText, drop: Bool[Array, " b"]
  ) -> Condition:
    """The states of all tokens.

    Args:
      tokens: ids, or the outputs themselves.

    Raises:
      ValueError: there are not `length` tokens.
    """
    if isinstance(tokens, EmbeddedText):
      if not self.is_initializing():
        return tokens.condition(self, drop)
      empty = self.empty_prompt_ids(self.length)
      tokens = jnp.broadcast_to(empty, (len(drop), self.length))
    count, length = tokens.shape
    if length != self.length:
      raise ValueError(
        f"{length} tokens for T5; give {self.length}, the conditioner's length"
      )
    empty = self.empty_prompt_ids(length)
    context = self.encoder(jnp.where(drop[:, None], empty, tokens))
    if self.zero_tokens:
      context = jnp.pad(context, [(0, 0), (self.zero_tokens, 0), (0, 0)])
    if self.zero_vector is None:
      return Condition(context)
    return Condition(context, vector=jnp.zeros((count, self.zero_vector)))

  def empty_prompt_ids(self, length: int) -> Int[Array, " l"]:
    """Ids of the empty prompt."""
    padding = (self.padding,) * (length - 1)
    return jnp.asarray((self.end, *padding), jnp.int32)

  def feature_weights(
    self, weights: Float[Array, "b l"]
  ) -> Float[Array, "b m 1"]:
    """Weights of the prompt's tokens, for all tokens of the context."""
    ahead = [(0, 0), (self.zero_tokens, 0)]
    return jnp.pad(weights, ahead, constant_values=1.0)[..., None]
