"""DiT and SiT: a transformer over patches of latents as the backbone."""

import functools
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ldm_jax.fields.limits import Count, Natural, Positive
from ldm_jax.nn.attention import AttentionBackend
from ldm_jax.nn.conditioners.embedders import Condition
from ldm_jax.nn.dit.blocks import (
  DiTBlock,
  FeedForward,
  Norm,
  linear,
  modulated,
)
from ldm_jax.nn.dit.patches import PatchEmbedding, unpatchify
from ldm_jax.nn.dit.positions import rotary_angles, sincos_positions
from ldm_jax.nn.initializers import normal
from ldm_jax.nn.layers import Remat, remat_policy, sinusoids
from ldm_jax.nn.operators.block_scan import apply_blocks

# Width, depth and heads (Peebles and Xie 2023, table 1).
SIZES = {
  "S": (384, 12, 6),
  "B": (768, 12, 12),
  "L": (1024, 24, 16),
  "XL": (1152, 28, 16),
}
TIME_WIDTH = 256  # sinusoids of the time, at every size


class DiT(nn.Module):
  """Tokens of patches through adaLN-zero blocks  (Peebles and Xie 2023).

  `Condition.vector` is added to the embedding of the time, so its width is the
  network's own: that of a `ClassEmbedder(classes, width, joins="vector")`,
  which holds the table of labels that released DiTs have inside, its last row
  the unconditional class. The default is DiT-XL/2 without learned variance.
  A new network outputs 0, and each of its blocks is the identity.

  Attributes:
    out_channels: of the output; those of the input are taken from the arrays.
    patch: side of a patch, in latents.
    learns_variance: the last layer has as many channels again, DiT's
      interpolation between the two variances of a step (Nichol and Dhariwal
      2021, eq. 15). They are read and written with the weights, but not
      returned: samplers here take a variance of their own, and training leaves
      them as they are.
    flow_steps: T of `Schedule("rectified_flow", steps=T)` for a SiT (Ma et al.
      2024); None for a network of this package's own inputs. SiT reads
      z = tau x0 + (1 - tau) eps at the time tau in [0, 1] and predicts
      dz/dtau = x0 - eps. At t here s = (t + 1) / T, so tau = 1 - s and
      z = sqrt(s^2 + (1 - s)^2) x_t; its output with the other sign is the
      prediction "flow".
    positions: "sincos" is added to the tokens, "rope" rotates queries and keys.
    grid: patches per side at which positions were trained; other sizes are
      spread over the same range. None counts patches at every size.
    registers: learned tokens before those of the patches (Darcet et al. 2024).
    norm, mlp, is_qk_normed, mlp_epsilon: see `DiTBlock`.
    hidden: features inside the MLPs; None for 4 * width of "gelu" and 8/3 *
      width, up to a multiple of 8, of "swiglu".
    frequency_shift: sinusoids of the time have the frequencies
      10000^(-i / (128 - frequency_shift)); 0 in DiT's and SiT's own code, 1 in
      diffusers.
    is_scanned: one scan over the blocks, which compiles faster; it takes
      parameters as without it, or stacked by `stack_blocks`.
    remat: rematerialisation of each block; see `remat_policy`.
    dtype: of computation; norms, softmax, modulation and output stay float32.
  """

  out_channels: Count = 4
  width: Count = 1152
  depth: Count = 28
  heads: Count = 16
  patch: Count = 2
  learns_variance: bool = False
  flow_steps: Count | None = None
  positions: Literal["sincos", "rope"] = "sincos"
  grid: Count | None = None
  registers: Natural = 0
  norm: Norm = "layer"
  mlp: FeedForward = "gelu"
  hidden: Count | None = None
  is_qk_normed: bool = False
  mlp_epsilon: Positive = 1e-6
  frequency_shift: Natural = 0
  is_scanned: bool = False
  remat: Remat = "off"
  attention_backend: AttentionBackend = "auto"
  dtype: DTypeLike = "float32"

  def __post_init__(self):
    super().__post_init__()
    head_width = self.width // self.heads
    if self.width % self.heads or self.width % 4:
      raise ValueError(
        f"width={self.width} must be a multiple of heads={self.heads} and of 4"
      )
    if not 0 <= self.frequency_shift < TIME_WIDTH // 2:
      raise ValueError(
        f"frequency_shift={self.frequency_shift} must be 0 to "
        f"{TIME_WIDTH // 2 - 1}"
      )
    if self.positions == "rope" and head_width % 4:
      raise ValueError(
        f"positions='rope' needs heads of a multiple of 4 features, and "
        f"width={self.width} with heads={self.heads} gives {head_width}"
      )

  @property
  def size_multiple(self) -> int:
    """Latents' sides must be multiples of it: those of a patch."""
    return self.patch

  @property
  def mlp_width(self) -> int:
    """Features inside the MLPs."""
    if self.hidden is not None:
      return self.hidden
    if self.mlp == "gelu":
      return 4 * self.width
    return -(-8 * self.width // 3 // 8) * 8

  @nn.compact
  def __call__(
    self,
    xt: Float[Array, "b h w c"],
    t: Float[Array, " b"],
    condition: Condition,
  ) -> Float[Array, "b h w d"]:
    self._check(condition)
    if self.flow_steps is not None:
      s = (t.astype(jnp.float32) + 1) / self.flow_steps
      xt = xt * jnp.hypot(s, 1 - s)[:, None, None, None]
      t = 1 - s
    emb = self.embed(t, condition.vector)
    if condition.concat is not None:
      xt = jnp.concatenate([xt, condition.concat.astype(xt.dtype)], axis=-1)
    rows_columns = xt.shape[1] // self.patch, xt.shape[2] // self.patch
    embedding = PatchEmbedding(
      self.patch, self.width, dtype=self.dtype, name="patches"
    )
    h, angles = self.positioned(embedding(xt), rows_columns)
    h = self.blocks(h, emb, angles)[:, self.registers :]
    h = self.last_layer(h, emb)
    out = unpatchify(h, self.patch, rows_columns)[..., : self.out_channels]
    return -out if self.flow_steps is not None else out

  def _check(self, condition: Condition) -> None:
    """Raises ValueError for a condition that the network does not take."""
    unread = [
      name
      for name in ("context", "guidance", "residuals")
      if getattr(condition, name) is not None
    ]
    if unread:
      raise ValueError(
        f"a DiT takes no {' or '.join(unread)}; use conditioners that return a "
        "vector (ClassEmbedder with joins='vector') or channels to concatenate"
      )
    vector = condition.vector
    if vector is not None and vector.shape[-1] != self.width:
      raise ValueError(
        f"the condition's vector has {vector.shape[-1]} features; a DiT adds "
        f"it to its embedding of the time, of width={self.width}: set the "
        "conditioner's width to that"
      )

  def embed(
    self, t: Float[Array, " b"], vector: Float[Array, "b d"] | None
  ) -> Float[Array, "b d"]:
    """MLP(sinusoids(t)) + vector, in float32."""
    init = normal(0.02)
    h = sinusoids(t, TIME_WIDTH, self.frequency_shift)
    for name in ("time_1", "time_2"):
      h = jax.nn.silu(h) if name == "time_2" else h
      h = linear(h, self.width, name=name, dtype="float32", kernel_init=init)
    return h if vector is None else h + vector.astype(jnp.float32)

  def positioned(
    self, h: Float[Array, "b l d"], rows_columns: tuple[int, int]
  ) -> tuple[Float[Array, "b l2 d"], Float[Array, "l2 e"] | None]:
    """The tokens with positions and registers, and angles of rotations."""
    angles = None
    if self.positions == "sincos":
      waves = sincos_positions(rows_columns, self.width, self.grid)
      h = h + waves.astype(h.dtype)
    else:
      head_width = self.width // self.heads
      angles = rotary_angles(
        rows_columns, head_width, self.grid, self.registers
      )
    if self.registers:
      shape = (self.registers, self.width)
      tokens = self.param("registers", normal(0.02), shape)
      tokens = jnp.broadcast_to(tokens.astype(h.dtype), (len(h), *shape))
      h = jnp.concatenate([tokens, h], axis=1)
    return h, angles

  @property
  def scanned_blocks(self) -> list[list[str]]:
    """The names of the blocks of the scan; see `stack_blocks`."""
    return [self._names] if self.is_scanned and self.depth > 1 else []

  @property
  def _names(self) -> list[str]:
    return [f"block_{i}" for i in range(self.depth)]

  def blocks(
    self,
    h: Float[Array, "b l d"],
    emb: Float[Array, "b d"],
    angles: Float[Array, "l e"] | None,
  ) -> Float[Array, "b l d"]:
    """All blocks, one after another or in a scan."""
    block_type = remat_policy(self.remat, DiTBlock)
    options = (self.heads, self.mlp_width, self.norm, self.mlp)
    options += (self.is_qk_normed, self.mlp_epsilon)
    options += (self.attention_backend, self.dtype)
    make = functools.partial(block_type, *options)
    call = lambda block, h: block(h, emb, angles)
    return apply_blocks(self, make, self._names, call, h)

  def last_layer(
    self, h: Float[Array, "b l d"], emb: Float[Array, "b d"]
  ) -> Float[Array, "b l e"]:
    """A modulated norm and a matrix, both of which start at zero; float32."""
    zero = {"dtype": "float32", "kernel_init": nn.initializers.zeros}
    parameters = linear(
      jax.nn.silu(emb), 2 * self.width, name="modulation", **zero
    )
    shift, scale = jnp.split(parameters, 2, axis=-1)
    h = modulated(h, shift, scale, self.norm, 1e-6)
    channels = self.out_channels * (2 if self.learns_variance else 1)
    return linear(h, self.patch**2 * channels, name="proj_out", **zero)


def dit_of_size(size: Literal["S", "B", "L", "XL"], patch: int = 2) -> DiT:
  """The DiT of a published size; set other fields by `clone`.

  dit_of_size("XL", 2).clone(learns_variance=True, grid=16)
  """
  width, depth, heads = SIZES[size]
  return DiT(width=width, depth=depth, heads=heads, patch=patch)
