"""DINOv2's image encoder: features of an image and of its patches."""

from typing import Any, Literal

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ldm_jax.fields.limits import Count, Natural
from ldm_jax.nn.attention import AttentionBackend
from ldm_jax.nn.encoders.position_grid import resize_positions
from ldm_jax.nn.initializers import torch_init
from ldm_jax.nn.layers import dense
from ldm_jax.nn.transformer import Attention

# Of ImageNet's images in [0, 1], by channel.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


@flax.struct.dataclass
class DinoV2Output:
  """The normalised states after the last block, in float32.

  Attributes:
    class_token: [b d], of the whole image.
    patches: [b h w d], of every patch; registers are left out.
  """

  class_token: Any
  patches: Any


class DinoV2Block(nn.Module):
  """x + a attention(norm x), then x + b feed-forward(norm x).

  a and b are LayerScale's factors, one for each feature (Touvron et al. 2021,
  eq. 4). `feed_forward` "mlp" is W2 gelu(W1 x), "swiglu" is
  W3 (silu(W1 x) * (W2 x)) (Shazeer 2020, eq. 6).
  """

  heads: int
  hidden: int
  feed_forward: Literal["mlp", "swiglu"] = "mlp"
  attention_backend: AttentionBackend = "auto"
  dtype: DTypeLike = "float32"

  @nn.compact
  def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
    attention = Attention(
      self.heads,
      x.shape[-1] // self.heads,
      self.attention_backend,
      self.dtype,
      is_biased=True,
      name="attention",
    )
    x = x + self._scaled(attention(_norm(x, "norm1", self.dtype)), "scale1")
    h = _norm(x, "norm2", self.dtype)
    if self.feed_forward == "swiglu":
      gate = jax.nn.silu(dense(h, self.hidden, name="gate", dtype=self.dtype))
      h = gate * dense(h, self.hidden, name="value", dtype=self.dtype)
      h = dense(h, x.shape[-1], name="out", dtype=self.dtype)
    else:
      h = dense(h, self.hidden, name="up", dtype=self.dtype)
      h = jax.nn.gelu(h, approximate=False)
      h = dense(h, x.shape[-1], name="down", dtype=self.dtype)
    return x + self._scaled(h, "scale2")

  def _scaled(self, x: Array, name: str) -> Array:
    scale = self.param(name, nn.initializers.constant(1e-5), x.shape[-1:])
    return x * scale.astype(x.dtype)


class DinoV2(nn.Module):
  """A vision transformer of self-supervised features  (Oquab et al. 2023).

  The defaults are ViT-L/14's. ViT-S/14 has width 384, depth 12 and 6 heads,
  ViT-B/14 width 768, depth 12 and 12 heads, ViT-g/14 width 1536, depth 40, 24
  heads and feed_forward="swiglu" with hidden=4096.

  Attributes:
    size: pixels of a side of the images whose patches have learned positions;
      those of other sizes are interpolated.
    patch: pixels of a patch's side.
    hidden: features inside the feed-forward; None is four times the width.
    registers: learned tokens that every image has besides its own (Darcet et
      al. 2023).
    is_antialiased: how positions are interpolated; see `resize_positions`.
    position_offset: likewise.
    dtype: of computation; norms, softmax and the output stay float32.

  Raises:
    ValueError: at construction, if the width does not divide into the heads or
      the side into patches.
  """

  size: Count = 518
  patch: Count = 14
  width: Count = 1024
  depth: Natural = 24
  heads: Count = 16
  hidden: Count | None = None
  feed_forward: Literal["mlp", "swiglu"] = "mlp"
  registers: Natural = 0
  is_antialiased: bool = False
  position_offset: float = 0.0
  attention_backend: AttentionBackend = "auto"
  dtype: DTypeLike = "float32"

  def __post_init__(self):
    super().__post_init__()
    if self.width % self.heads or self.size % self.patch:
      raise ValueError(
        f"width {self.width} must divide into {self.heads} heads, and size "
        f"{self.size} into patches of {self.patch}"
      )

  @nn.compact
  def __call__(self, images: Float[Array, "b h w 3"]) -> DinoV2Output:
    """Features of images in [-1, 1].

    Raises:
      ValueError: a side is not a multiple of `patch`.
    """
    x = self._embed(images)
    for i in range(self.depth):
      x = DinoV2Block(
        self.heads,
        self.hidden or 4 * self.width,
        self.feed_forward,
        self.attention_backend,
        self.dtype,
        name=f"block_{i}",
      )(x)
    x = _norm(x, "norm", "float32")
    grid = (images.shape[1] // self.patch, images.shape[2] // self.patch)
    patches = x[:, 1 + self.registers :]
    return DinoV2Output(
      x[:, 0], patches.reshape(len(images), *grid, self.width)
    )

  def _embed(self, images: Array) -> Array:
    """[class token | registers | patches], those but registers positioned."""
    count, height, width, _ = images.shape
    if height % self.patch or width % self.patch:
      raise ValueError(
        f"images of {height} x {width} pixels do not divide into patches of "
        f"{self.patch}; resize them to multiples of it"
      )
    pixels = ((images + 1) / 2 - jnp.array(MEAN)) / jnp.array(STD)
    patches = nn.Conv(
      self.width,
      (self.patch, self.patch),
      (self.patch, self.patch),
      padding="VALID",
      dtype=self.dtype,
      name="patches",
      **torch_init(3 * self.patch**2),
    )(pixels)
    side = self.size // self.patch
    normal = nn.initializers.normal(0.02)
    shape = (1, 1 + side * side, self.width)
    positions = self.param("positions", normal, shape)
    grid = resize_positions(
      positions[0, 1:].reshape(side, side, self.width),
      patches.shape[1:3],
      is_antialiased=self.is_antialiased,
      offset=self.position_offset,
    )
    patches = (patches + grid.astype(patches.dtype)).reshape(
      count, -1, self.width
    )
    first = self.param("class_token", normal, (1, 1, self.width))
    rows = [first + positions[:, :1]]
    if self.registers:
      shape = (1, self.registers, self.width)
      rows.append(self.param("registers", normal, shape))
    own = jnp.concatenate(rows, axis=1).astype(patches.dtype)
    own = jnp.broadcast_to(own, (count, *own.shape[1:]))
    return jnp.concatenate([own, patches], axis=1)


def _norm(
  x: Float[Array, "b l d"], name: str, dtype: DTypeLike
) -> Float[Array, "b l d"]:
  """A layer norm in float32, whose epsilon is not PyTorch's default."""
  norm = nn.LayerNorm(
    epsilon=1e-6, dtype=jnp.float32, use_fast_variance=False, name=name
  )
  return norm(x.astype(jnp.float32)).astype(dtype)
