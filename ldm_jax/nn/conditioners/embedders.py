"""What a denoiser is told: one contract, and the networks that fulfil it.

A conditioner is a module over raw arrays (ids, labels) that makes its part of
a `Condition`, and knows what "nothing was said" means for it: where `drop` is
true it answers with its null. Training dropout, guidance and a prompt that was
not given are that one definition.
"""

from typing import Any, Literal

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Real

from ldm_jax.nn.encoders.text_encoder import TextEncoder
from ldm_jax.nn.layers import layer_norm, sinusoids


@flax.struct.dataclass
class Condition:
  """Everything a U-Net may be told beside x_t and t; each part may be absent.

  Attributes:
    context: [b l d], tokens for cross-attention.
    concat: [b h w c], channels laid beside x_t.
    vector: [b v], added to the time embedding through the U-Net's own layers.
    hint: [b H W 3] in [0, 1], the picture that a ControlNet reads.
    control: [b 3], how much of what it says is added, and between which
      shares t / T of the noise's time.
    residuals: what it says: for every skip connection, and for the middle.
  """

  # Any: as a tree it carries shapes and shardings as well as arrays.
  context: Any = None
  concat: Any = None
  vector: Any = None
  hint: Any = None
  control: Any = None
  residuals: Any = None


def _joined(parts: list[Array], axis: int) -> Array | None:
  return jnp.concatenate(parts, axis) if parts else None


def merge(conditions: list[Condition]) -> Condition:
  """Contexts one after another, channels and vectors side by side.

  Raises:
    ValueError: if two contexts differ in width.
  """
  pick = lambda part: [
    value for c in conditions if (value := getattr(c, part)) is not None
  ]
  widths = {context.shape[-1] for context in pick("context")}
  if len(widths) > 1:
    raise ValueError(
      f"contexts of widths {sorted(widths)} cannot stand in one sequence; "
      "give every conditioner the same width"
    )
  return Condition(
    context=_joined(pick("context"), 1),
    concat=_joined(pick("concat"), -1),
    vector=_joined(pick("vector"), -1),
  )


def zero_where(said: Any, drop: Bool[Array, " b"]) -> Any:
  """Every array of it 0 where `drop` is true."""
  silenced = lambda x: jnp.where(drop.reshape(-1, *[1] * (x.ndim - 1)), 0.0, x)
  return jax.tree.map(silenced, said)


class ClassEmbedder(nn.Module):
  """A class label as one token; label `classes` is the null class.

  LDM's ClassEmbedder (Rombach et al. 2022, appendix E.2): ImageNet's has
  1,001 rows of 512.

  Attributes:
    joins: "context" is a token to attend to; "vector" is added to the time
      embedding (Dhariwal and Nichol 2021, section 3); "both" does both.
    reads: the batch's array of labels, in [0, classes).
    drop_rate: how often training replaces the label by the null class.
  """

  classes: int
  width: int
  joins: Literal["context", "vector", "both"] = "context"
  input_key: str = "label"
  drop_rate: float = 0.1

  has_unconditional = True
  is_frozen = False

  @nn.compact
  def __call__(
    self, label: Int[Array, " b"], drop: Bool[Array, " b"]
  ) -> Condition:
    table = nn.Embed(
      self.classes + 1,
      self.width,
      embedding_init=nn.initializers.normal(1.0),  # torch.nn.Embedding's
      name="table",
    )
    row = table(jnp.where(drop, self.classes, label))
    return Condition(
      context=None if self.joins == "vector" else row[:, None],
      vector=None if self.joins == "context" else row,
    )


class SizeEmbedder(nn.Module):
  """Each number's sinusoids, one number's after another's; no parameters.

  SDXL's micro-conditioning (Podell et al. 2023, 2.2), in pixels and height
  first: the base is told the original size, the crop's top and left and the
  target size, six numbers; the refiner the original size, the crop and an
  aesthetic score, five. `drop` changes nothing: the sizes of an image are as
  true of its null.

  Attributes:
    ends_with: what the last numbers are, the target's height and width or the
      score.
    width: of one number's sinusoids, cosines first.
    reads: the batch's array of numbers.
    drop_rate: without effect, whatever it is.
  """

  ends_with: Literal["target", "score"] = "target"
  width: int = 256
  input_key: str = "sizes"
  drop_rate: float = 0.0

  has_unconditional = False
  is_frozen = False

  @property
  def count(self) -> int:
    """How many numbers are told."""
    return {"target": 6, "score": 5}[self.ends_with]

  def __call__(
    self, sizes: Real[Array, "b k"], drop: Bool[Array, " b"]
  ) -> Condition:
    if sizes.shape[1] != self.count:
      raise ValueError(
        f"{sizes.shape[1]} numbers of size, but {self.count} are told where "
        f"they end with a {self.ends_with}"
      )
    numbers = sizes.reshape(-1).astype(jnp.float32)  # sizes may be whole
    rows = sinusoids(numbers, self.width)
    return Condition(vector=rows.reshape(sizes.shape[0], -1))


class TextEmbedder(nn.Module):
  """Token ids through a transformer trained with the U-Net; null is "".

  Attributes:
    empty: ids of the empty prompt, as the tokenizer writes them up to its
      padding, e.g. (101, 102) for BERT.
    padding: the id that fills the rest.
    reads: the batch's array of ids.
    drop_rate: how often training replaces the prompt by the empty one.
    is_pooled: give the normalised mean of the tokens as a vector too; SDXL's
      U-Net takes such a summary of the text beside its tokens (Podell et al.
      2023, 2.1).
  """

  encoder: TextEncoder
  empty: tuple[int, ...] = (2, 3)
  padding: int = 0
  input_key: str = "tokens"
  drop_rate: float = 0.1
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
    null = self.empty_prompt_ids(tokens.shape[1])
    context = self.encoder(jnp.where(drop[:, None], null, tokens))
    if not self.is_pooled:
      return Condition(context)
    # The mean of many words is short, and most of it common to all texts.
    pooled = layer_norm(context.mean(1), name="pooled", dtype="float32")
    return Condition(context, vector=pooled)


class LayoutEmbedder(nn.Module):
  """A layout's ids through a transformer trained with the U-Net.

  LDM's layout-to-image models (Rombach et al. 2022, section 4.3.1): width 512,
  depth 16, 8,192 ids, 92 of them for an image. The null is a layout without
  objects.

  Attributes:
    reads: the batch's array of ids; see data/layout.py.
    drop_rate: how often training replaces the layout by the empty one; LDM's
      never does.
  """

  encoder: TextEncoder
  input_key: str = "layout"
  drop_rate: float = 0.0

  has_unconditional = True
  is_frozen = False

  @nn.compact
  def __call__(
    self, ids: Int[Array, "b l"], drop: Bool[Array, " b"]
  ) -> Condition:
    none = self.encoder.vocabulary - 1
    return Condition(self.encoder(jnp.where(drop[:, None], none, ids)))
