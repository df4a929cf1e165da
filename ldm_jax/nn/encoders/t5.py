"""The encoder of T5 version 1.1, as in SD3 and FLUX."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from ldm_jax.fields.limits import Count, Positive
from ldm_jax.nn.initializers import normal
from ldm_jax.nn.layers import Remat, remat_policy
from ldm_jax.nn.operators.block_scan import apply_blocks
from ldm_jax.nn.operators.rows import on_rows


def _matrix(
  x: Float[Array, "... c"], features: int, deviation: float, **options
) -> Float[Array, "... d"]:
  """x W over the last axis, W of normal values of `deviation`."""
  layer = nn.Dense(
    features, use_bias=False, kernel_init=normal(deviation), **options
  )
  return on_rows(layer, x)


def _rms_norm(
  x: Float[Array, "... c"], epsilon: float, name: str
) -> Float[Array, "... c"]:
  """scale x / sqrt(mean(x^2) + epsilon) in float32."""
  return nn.RMSNorm(epsilon=epsilon, dtype=jnp.float32, name=name)(x)


def relative_buckets(
  length: int, buckets: int, distance: int
) -> Int[Array, "l l"]:
  """The class of the distance from every token (row) to every other.

  Raffel et al. 2020, section 2.1: half of the classes are for tokens after, the
  other half for those before; in each, half are single distances, and the rest
  grow logarithmically up to `distance`, where the last one begins.
  """
  half = buckets // 2
  classes = [_class_of(far, half, distance) for far in range(length)]
  places = jnp.arange(length)
  offset = places[None] - places[:, None]
  near = jnp.asarray(classes, jnp.int32)[jnp.abs(offset)]
  return near + half * (offset > 0)


def _class_of(far: int, classes: int, distance: int) -> int:
  """The class of a distance in one direction, in whole numbers.

  single + floor(log(far / single) / log(distance / single) steps), of `single`
  distances that are classes of their own and `steps` others.
  """
  single = classes // 2
  steps = classes - single
  if far < single:
    return far
  step = 0
  while step < steps - 1 and (far**steps) * single ** (step + 1) >= (
    distance ** (step + 1) * single**steps
  ):
    step += 1
  return single + step


class T5Block(nn.Module):
  """x + attention(norm x), then x + gated feed-forward(norm x).

  Scores are not divided by sqrt(head width), and no layer has a bias. The
  feed-forward is (gelu(x W0) * (x W1)) W2, with the gelu of the tanh (Shazeer
  2020, eq. 6).
  """

  heads: int
  head_width: int
  hidden: int
  epsilon: float = 1e-6
  dtype: DTypeLike = "float32"

  @nn.compact
  def __call__(
    self, x: Float[Array, "b l d"], bias: Float[Array, "c n l l"]
  ) -> Float[Array, "b l d"]:
    """The next states, float32.

    Args:
      bias: added to the scores, for all texts or for each.
    """
    h = _rms_norm(x, self.epsilon, "norm1").astype(self.dtype)
    x = x + self.attention(h, bias)
    h = _rms_norm(x, self.epsilon, "norm2").astype(self.dtype)
    return x + self.feed_forward(h)

  def attention(self, x: Array, bias: Array) -> Array:
    """softmax(q k^T + bias) v, projected; scores and softmax are float32."""
    width, inner = x.shape[-1], self.heads * self.head_width
    start = {"q": (width * self.head_width) ** -0.5}

    def project(name: str) -> Array:
      deviation = start.get(name, width**-0.5)
      h = _matrix(x, inner, deviation, dtype=self.dtype, name=name)
      return h.reshape(*x.shape[:2], self.heads, self.head_width)

    q, k, v = project("q"), project("k"), project("v")
    if jnp.dtype(self.dtype) == jnp.float16:
      # XLA:CPU has no product of float16 with float32 sums.
      q, k, v = (each.astype(jnp.float32) for each in (q, k, v))
    out = jax.nn.dot_product_attention(q, k, v, bias=bias, scale=1.0)
    out = out.reshape(*x.shape[:2], inner)
    out = _matrix(out, width, inner**-0.5, dtype=self.dtype, name="out")
    return out.astype(jnp.float32)

  def feed_forward(self, x: Array) -> Array:
    """The gated MLP.

    Its product and last matrix are float32: of XXL they exceed float16, and
    transformers keeps that matrix in float32.
    """
    width = x.shape[-1]
    up = lambda name: _matrix(
      x, self.hidden, width**-0.5, dtype=self.dtype, name=name
    ).astype(jnp.float32)
    h = jax.nn.gelu(up("gate"), approximate=True) * up("up")
    options = {"dtype": jnp.float32, "name": "down"}
    return _matrix(h, width, self.hidden**-0.5, **options)


class T5Encoder(nn.Module):
  """A text's tokens through T5's encoder  (Raffel et al. 2020; v1.1).

  The defaults are T5 v1.1 XXL, which SD3 and FLUX read: 4,762,310,656
  parameters. The bias of attention is a learned number for each class of
  distance and head, the same in all blocks; there are no other positions, and
  so no limit on the length.

  Attributes:
    heads, head_width: heads * head_width need not be the width.
    hidden: features inside the feed-forward.
    buckets: classes of distance.
    distance: in tokens, at which the last class begins.
    epsilon: of the norms.
    is_scanned: one scan over the blocks, which compiles faster; it takes
      parameters as without it, or stacked by `stack_blocks`.
    remat: rematerialisation of each block; see `remat_policy`.
    dtype: of computation; sums over blocks, norms, softmax, the feed-forwards'
      last matrices and the output stay float32.

  Raises:
    ValueError: at construction, if the classes of distance are not a multiple
      of 4 or no single distances are left below `distance`.
  """

  vocabulary: Count = 32128
  width: Count = 4096
  depth: Count = 24
  heads: Count = 64
  head_width: Count = 64
  hidden: Count = 10240
  buckets: Count = 32
  distance: Count = 128
  epsilon: Positive = 1e-6
  is_scanned: bool = False
  remat: Remat = "off"
  dtype: DTypeLike = "float32"

  def __post_init__(self):
    super().__post_init__()
    if self.buckets % 4 or self.distance <= self.buckets // 4:
      raise ValueError(
        f"buckets={self.buckets} must be a multiple of 4, and "
        f"distance={self.distance} more than a quarter of them"
      )

  @nn.compact
  def __call__(
    self,
    tokens: Int[Array, "b l"],
    mask: Bool[Array, "b l"] | None = None,
  ) -> Float[Array, "b l d"]:
    """The last states after the final norm, float32.

    Args:
      mask: true at the tokens that are attended to; None at all of them. SD3
        and FLUX attend to the padding too.
    """
    table = nn.Embed(
      self.vocabulary, self.width, embedding_init=normal(1.0), name="tokens"
    )
    x = table(tokens).astype(jnp.float32)
    x = self.blocks(x, self.bias(tokens.shape[1], mask))
    return _rms_norm(x, self.epsilon, "norm")

  def bias(
    self, length: int, mask: Bool[Array, "b l"] | None
  ) -> Float[Array, "c n l l"]:
    """Of the scores: the distances', and the lowest number where masked."""
    table = nn.Embed(
      self.buckets,
      self.heads,
      embedding_init=normal(self.width**-0.5),
      name="positions",
    )
    rows = table(relative_buckets(length, self.buckets, self.distance))
    bias = rows.astype(jnp.float32).transpose(2, 0, 1)[None]
    if mask is None:
      return bias
    lowest = jnp.finfo(jnp.float32).min
    return jnp.where(mask[:, None, None], bias, lowest)

  @property
  def scanned_blocks(self) -> list[list[str]]:
    """The names of the blocks of the scan; see `stack_blocks`."""
    return [self._names] if self.is_scanned and self.depth > 1 else []

  @property
  def _names(self) -> list[str]:
    return [f"block_{i}" for i in range(self.depth)]

  def blocks(
    self, x: Float[Array, "b l d"], bias: Float[Array, "c n l l"]
  ) -> Float[Array, "b l d"]:
    """All blocks, one after another or in a scan."""
    block_type = remat_policy(self.remat, T5Block)
    options = (self.heads, self.head_width, self.hidden)
    options += (self.epsilon, self.dtype)
    make = functools.partial(block_type, *options)
    return apply_blocks(
      self, make, self._names, lambda block, x: block(x, bias), x
    )
