"""Conditions of a denoiser, and conditioners over labels, numbers and ids.

A conditioner turns one array of the batch (ids, labels) into a part of a
`Condition`. Where `drop` is true its output is the unconditional one; condition
dropout in training, the negative side of guidance and a missing prompt are all
that same output.
"""

from typing import Any, Literal

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Real

from ldm_jax.fields.limits import Count, Fraction, Natural, Positive
from ldm_jax.nn.encoders.text_encoder import TextEncoder
from ldm_jax.nn.layers import layer_norm, sinusoids


@flax.struct.dataclass
class Condition:
  """The inputs of a backbone in addition to x_t and t; each may be None.

  Attributes:
    context: [b l d], tokens for cross-attention.
    concat: [b h w c], channels concatenated with x_t.
    vector: [b v], added to the time embedding through the U-Net's own layers.
    guidance: [b], the scale of guidance, for a U-Net that embeds it.
    hint: [b H W 3] in [0, 1], the input image of a ControlNet.
    control: [b 3], the scale of its residuals, and the start and end of the
      interval of t / T in which they are added.
    residuals: of a ControlNet, for every skip connection and for the middle.
  """

  # Any: as a tree it carries shapes and shardings as well as arrays.
  context: Any = None
  concat: Any = None
  vector: Any = None
  guidance: Any = None
  hint: Any = None
  control: Any = None
  residuals: Any = None


def _concatenate(arrays: list[Array], axis: int) -> Array | None:
  return jnp.concatenate(arrays, axis) if arrays else None


def merge(conditions: list[Condition]) -> Condition:
  """One condition: contexts concatenated along tokens, the rest along features.

  Raises:
    ValueError: two contexts differ in width.
  """
  pick = lambda name: [
    value for c in conditions if (value := getattr(c, name)) is not None
  ]
  widths = {context.shape[-1] for context in pick("context")}
  if len(widths) > 1:
    raise ValueError(
      f"contexts of widths {sorted(widths)} cannot be one sequence; "
      "give every conditioner the same width"
    )
  return Condition(
    context=_concatenate(pick("context"), 1),
    concat=_concatenate(pick("concat"), -1),
    vector=_concatenate(pick("vector"), -1),
  )


def zero_where(tree: Any, drop: Bool[Array, " b"]) -> Any:
  """Every array [b ...] of `tree`, 0 where `drop` is true."""
  zero = lambda x: jnp.where(drop.reshape(-1, *[1] * (x.ndim - 1)), 0.0, x)
  return jax.tree.map(zero, tree)


class ClassEmbedder(nn.Module):
  """A class label as one token; label `classes` is the unconditional class.

  LDM's ClassEmbedder (Rombach et al. 2022, appendix E.2): ImageNet's has
  1,001 rows of 512.

  Attributes:
    joins: "context" is a token for cross-attention; "vector" is added to the
      time embedding (Dhariwal and Nichol 2021, section 3); "both" is both.
    input_key: of the batch's array of labels, in [0, classes).
    drop_rate: fraction of training examples with the unconditional class.
    deviation: of the rows' initial normal values: torch.nn.Embedding's; DiT's
      is 0.02.
  """

  classes: Count
  width: Count
  joins: Literal["context", "vector", "both"] = "context"
  input_key: str = "label"
  drop_rate: Fraction = 0.1
  deviation: Positive = 1.0

  has_unconditional = True
  is_frozen = False

  @nn.compact
  def __call__(
    self, label: Int[Array, " b"], drop: Bool[Array, " b"]
  ) -> Condition:
    table = nn.Embed(
      self.classes + 1,
      self.width,
      embedding_init=nn.initializers.normal(self.deviation),
      name="table",
    )
    row = table(jnp.where(drop, self.classes, label))
    return Condition(
      context=None if self.joins == "vector" else row[:, None],
      vector=None if self.joins == "context" else row,
    )


class SizeEmbedder(nn.Module):
  """The sinusoids of several numbers, concatenated; no parameters.

  SDXL's micro-conditioning (Podell et al. 2023, 2.2), in pixels and height
  first: the base takes the original size, the crop's top and left and the
  target size, six numbers; the refiner the original size, the crop and an
  aesthetic score, five. `drop` changes nothing: both sides of guidance have the
  same sizes.

  Attributes:
    ends_with: what the last numbers are, the target's height and width or the
      score.
    width: of one number's sinusoids, cosines first.
    input_key: of the batch's array of numbers.
    drop_rate: without effect.
  """

  ends_with: Literal["target", "score"] = "target"
  width: Count = 256
  input_key: str = "sizes"
  drop_rate: Fraction = 0.0

  has_unconditional = False
  is_frozen = False

  @property
  def count(self) -> int:
    """How many numbers there are."""
    return {"target": 6, "score": 5}[self.ends_with]

  def __call__(
    self, sizes: Real[Array, "b k"], drop: Bool[Array, " b"]
  ) -> Condition:
    if sizes.shape[1] != self.count:
      raise ValueError(
        f"{sizes.shape[1]} numbers of size, but {self.count} are needed where "
        f"they end with a {self.ends_with}"
      )
    numbers = sizes.reshape(-1).astype(jnp.float32)  # sizes may be integers
    rows = sinusoids(numbers, self.width)
    return Condition(vector=rows.reshape(sizes.shape[0], -1))


class TextEmbedder(nn.Module):
  """Token ids through a transformer trained with the U-Net.

  The unconditional input is the empty prompt.

  Attributes:
    empty: ids of the empty prompt, as the tokenizer writes them up to its
      padding, e.g. (101, 102) for BERT.
    padding: the id that fills the rest.
    input_key: of the batch's array of ids.
    drop_rate: fraction of training examples with the empty prompt.
    is_pooled: return the normalised mean of the tokens as a vector too; SDXL's
      U-Net takes such a vector in addition to the tokens (Podell et al. 2023,
      2.1).
  """

  encoder: TextEncoder
  empty: tuple[Natural, ...] = (2, 3)
  padding: Natural = 0
  input_key: str = "tokens"
  drop_rate: Fraction = 0.1
  is_pooled: bool = False

  has_unconditional = True
  is_frozen = False

  def empty_prompt_ids(self, length: int) -> Int[Array, " l"]:
    """Ids of the empty prompt, padded to `length`."""
    ids = self.empty + (self.padding,) * (length - len(self.empty))
    return jnp.asarray(ids[:length], jnp.int32)

  @nn.compact
  def __call__(
    self, tokens: Int[Array, "b l"], drop: Bool[Array, " b"]
  ) -> Condition:
    empty = self.empty_prompt_ids(tokens.shape[1])
    context = self.encoder(jnp.where(drop[:, None], empty, tokens))
    if not self.is_pooled:
      return Condition(context)
    # The mean of many tokens is short, and most of it common to all texts.
    pooled = layer_norm(context.mean(1), name="pooled", dtype="float32")
    return Condition(context, vector=pooled)


class LayoutEmbedder(nn.Module):
  """A layout's ids through a transformer trained with the U-Net.

  LDM's layout-to-image models (Rombach et al. 2022, section 4.3.1): width 512,
  depth 16, 8,192 ids, 92 of them for an image. The unconditional input is a
  layout without objects.

  Attributes:
    input_key: of the batch's array of ids; see
      data/transforms/layout_tokens.py.
    drop_rate: fraction of training examples with the empty layout; LDM's is 0.
  """

  encoder: TextEncoder
  input_key: str = "layout"
  drop_rate: Fraction = 0.0

  has_unconditional = True
  is_frozen = False

  @nn.compact
  def __call__(
    self, ids: Int[Array, "b l"], drop: Bool[Array, " b"]
  ) -> Condition:
    no_object = self.encoder.vocabulary - 1
    return Condition(self.encoder(jnp.where(drop[:, None], no_object, ids)))
