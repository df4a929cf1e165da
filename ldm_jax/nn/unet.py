"""The time-conditional U-Net of the second stage, with attention."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ldm_jax.fields.limits import Below1, Count, Natural
from ldm_jax.nn.attention import AttentionBackend
from ldm_jax.nn.conditioners.embedders import Condition
from ldm_jax.nn.conv_stack.resnet import ResBlock
from ldm_jax.nn.initializers import normal
from ldm_jax.nn.layers import (
  Remat,
  check_widths,
  conv,
  dense,
  downsample,
  group_norm,
  guidance_sinusoids,
  remat_policy,
  sinusoids,
  upsample_conv,
)
from ldm_jax.nn.transformer import (
  AttentionPlan,
  PixelAttention,
  SpatialTransformer,
)

EPSILON = 1e-5  # torch's default, which the U-Net keeps; the autoencoder's 1e-6


def coordinates(
  x: Float[Array, "b h w c"], octaves: int
) -> Float[Array, "b h w k"]:
  """Fourier features of every pixel's row and column, 4 * octaves channels.

  Sines and cosines (Tancik et al. 2020, eq. 4) of pi u / 2 and its octaves, u
  being -1 at the first pixel and 1 at the last.
  """
  axes = [jnp.linspace(-1, 1, size) for size in x.shape[1:3]]
  positions = jnp.stack(jnp.meshgrid(*axes, indexing="ij"), axis=-1)
  angles = positions[..., None] * (jnp.pi / 2 * 2.0 ** jnp.arange(octaves))
  waves = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
  waves = waves.reshape(*positions.shape[:2], 4 * octaves).astype(x.dtype)
  return jnp.broadcast_to(waves, (x.shape[0], *waves.shape))


class UNet(nn.Module):
  """eps_theta(x_t, t, y)  (Rombach et al. 2022, section 3.3, eq. 3).

  The default is that of SD 1. The last layer starts at zero, so a new U-Net
  outputs 0.

  Attributes:
    out_channels: of the output; those of the input are taken from the arrays.
    channels: width of the first level, multiplied per level.
    blocks: residual blocks per level of the encoder; the decoder has one more.
    vector: how `Condition.vector` joins the time embedding: "mlp" (SDXL's
      sizes), "table" (a matrix without bias: rows of classes if the vector is
      one-hot), or None if there is none.
    modulation: of the residual blocks; see `ResBlock`.
    guidance_width: features of the embedding of `Condition.guidance` (Meng et
      al. 2023), which joins that of the time; None if there is none.
    octaves: of `coordinates`, concatenated with x_t as in CoordConv (Liu et
      al. 2018); 0 adds none. From zero padding alone a small network learns
      positions slowly.
    resampling: halve and double by a convolution, or inside a residual block
      (LDM's `resblock_updown`).
    remat: rematerialisation of blocks; see `remat_policy`.
    dtype: of computation; norms, softmax, time embedding and output stay
      float32.
  """

  out_channels: Count = 4
  channels: Count = 320
  multipliers: tuple[Count, ...] = (1, 2, 4, 4)
  blocks: Count = 2
  attention: AttentionPlan = AttentionPlan()
  vector: Literal["mlp", "table"] | None = None
  modulation: Literal["add", "scale_shift"] = "add"
  octaves: Natural = 0
  resampling: Literal["conv", "block"] = "conv"
  dropout: Below1 = 0.0
  groups: Count = 32
  guidance_width: Count | None = None
  remat: Remat = "off"
  attention_backend: AttentionBackend = "auto"
  dtype: DTypeLike = "float32"

  def __post_init__(self):
    super().__post_init__()
    check_widths(self.channels, self.multipliers, self.groups)
    if len(self.attention.depths) != len(self.multipliers):
      raise ValueError(
        f"attention.depths has {len(self.attention.depths)} levels, "
        f"multipliers has {len(self.multipliers)}; give one depth per level"
      )
    for depth, multiplier in zip(
      self.attention.depths, self.multipliers, strict=True
    ):
      if depth:
        self.attention.split(self.channels * multiplier)

  @property
  def embeds_guidance(self) -> bool:
    """Whether it reads `Condition.guidance`."""
    return self.guidance_width is not None

  @property
  def size_multiple(self) -> int:
    """Latents' sides must be multiples of it; 1 if every size is valid.

    Convolutions halve an odd side to one more than its half, and the decoder
    cuts it again. Residual blocks that resample take even sides alone.
    """
    if self.resampling == "conv":
      return 1
    return 2 ** (len(self.multipliers) - 1)

  @nn.compact
  def __call__(
    self,
    xt: Float[Array, "b h w c"],
    t: Float[Array, " b"],
    condition: Condition,
  ) -> Float[Array, "b h w d"]:
    emb = self.embed(t, condition)
    h = xt.astype(self.dtype)
    if condition.concat is not None:
      h = jnp.concatenate([h, condition.concat.astype(self.dtype)], axis=-1)
    if self.octaves:
      h = jnp.concatenate([h, coordinates(h, self.octaves)], axis=-1)
    h = conv(h, self.channels, name="conv_in", dtype=self.dtype)
    h, skips = self.down_blocks(h, emb, condition.context)
    h = self.mid_block(h, emb, condition.context)
    if condition.residuals is not None:
      *added, last = condition.residuals
      pairs = zip(skips, added, strict=True)
      skips = [skip + more.astype(skip.dtype) for skip, more in pairs]
      h = h + last.astype(h.dtype)
    h = self.up_blocks(h, skips, emb, condition.context)
    h = group_norm(
      h,
      name="norm_out",
      groups=self.groups,
      epsilon=EPSILON,
      dtype=self.dtype,
      is_activated=True,
    )
    h = conv(
      h,
      self.out_channels,
      name="conv_out",
      is_zero=True,
      dtype=self.dtype,
    )
    return h.astype(jnp.float32)

  def embed(self, t: Array, condition: Condition) -> Array:
    """MLP(sinusoids(t)), plus the embedding of the vector."""
    if ((vector := condition.vector) is None) != (self.vector is None):
      raise ValueError(
        f"the U-Net has vector={self.vector!r} but the condition "
        f"{'has no vector' if vector is None else 'has one'}"
      )
    width = 4 * self.channels

    def mlp(x, name):
      h = dense(x, width, name=f"{name}_1", dtype="float32")
      return dense(jax.nn.silu(h), width, name=f"{name}_2", dtype="float32")

    waves = sinusoids(t, self.channels)
    if self.guidance_width is not None:
      more = guidance_sinusoids(condition.guidance, self.guidance_width)
      waves = waves + dense(
        more, self.channels, name="guidance", use_bias=False, dtype="float32"
      )
    emb = mlp(waves, "time")
    if self.vector == "mlp":
      emb = emb + mlp(vector, "vector")
    elif self.vector == "table":
      # Initialised as an embedding: a one-hot row has no fan-in to divide by.
      table = nn.Dense(
        width,
        use_bias=False,
        kernel_init=normal(1.0),
        name="vector",
      )
      emb = emb + table(vector)
    return emb.astype(self.dtype)

  def down_blocks(self, h: Array, emb: Array, context: Array | None):
    """The encoder; returns the lowest level and every skip connection."""
    skips = [h]
    for level in range(len(self.multipliers)):
      for i in range(self.blocks):
        h = self.res_block(h, emb, level, f"down_{level}_block_{i}")
        h = self.attention_block(
          h, context, level, f"down_{level}_attention_{i}"
        )
        skips.append(h)
      if level < len(self.multipliers) - 1:
        name = f"down_{level}_downsample"
        if self.resampling == "block":
          h = self.res_block(h, emb, level, name, "down")
        else:
          h = downsample(h, name=name, padding=(1, 1), dtype=self.dtype)
        skips.append(h)
    return h, skips

  def mid_block(self, h: Array, emb: Array, context: Array | None) -> Array:
    """Block, attention, block at the lowest level."""
    lowest = len(self.multipliers) - 1
    h = self.res_block(h, emb, lowest, "mid_block_0")
    h = self.attention_block(h, context, None, "mid_attention")
    return self.res_block(h, emb, lowest, "mid_block_1")

  def up_blocks(
    self, h: Array, skips: list[Array], emb: Array, context: Array | None
  ) -> Array:
    """The decoder, each block with the skip connection of its mirror image."""
    skips = list(skips)
    for level in reversed(range(len(self.multipliers))):
      for i in range(self.blocks + 1):
        h = jnp.concatenate([h, skips.pop()], axis=-1)
        h = self.res_block(h, emb, level, f"up_{level}_block_{i}")
        h = self.attention_block(h, context, level, f"up_{level}_attention_{i}")
      if level > 0:
        name = f"up_{level}_upsample"
        if self.resampling == "block":
          h = self.res_block(h, emb, level, name, "up")
        else:
          size = skips[-1].shape[1:3]
          h = upsample_conv(
            h, h.shape[-1], name=name, size=size, dtype=self.dtype
          )
    return h

  def res_block(
    self,
    h: Array,
    emb: Array,
    level: int,
    name: str,
    resample: Literal["up", "down"] | None = None,
  ) -> Array:
    """A residual block of the level's width."""
    block = remat_policy(self.remat, ResBlock)(
      self.channels * self.multipliers[level],
      epsilon=EPSILON,
      modulation=self.modulation,
      resample=resample,
      dropout=self.dropout,
      groups=self.groups,
      dtype=self.dtype,
      name=name,
    )
    return block(h, emb)

  def attention_block(
    self, h: Array, context: Array | None, level: int | None, name: str
  ) -> Array:
    """Attention of the level (None is the middle), if it has any."""
    plan = self.attention
    depth = plan.mid_depth if level is None else plan.depths[level]
    if depth == 0:
      return h
    heads, head_width = plan.split(h.shape[-1])
    if plan.kind == "plain":
      return remat_policy(self.remat, PixelAttention)(
        heads,
        EPSILON,
        is_zero=True,
        groups=self.groups,
        attention_backend=self.attention_backend,
        dtype=self.dtype,
        name=name,
      )(h)
    outer = self.remat if depth == 1 else "off"
    return remat_policy(outer, SpatialTransformer)(
      depth,
      heads,
      head_width,
      is_linear=plan.is_linear,
      is_cross_only=bool(
        plan.cross_only and level is not None and plan.cross_only[level]
      ),
      groups=self.groups,
      is_scanned=plan.is_scanned,
      remat=self.remat,
      attention_backend=self.attention_backend,
      dtype=self.dtype,
      name=name,
    )(h, context)
