"""Encoder and decoder of the first stage, as steps from level to level."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ldm_jax.fields.limits import Below1, Count, Natural
from ldm_jax.nn.attention import AttentionBackend
from ldm_jax.nn.conv_stack.resnet import ResBlock
from ldm_jax.nn.layers import (
  Remat,
  check_widths,
  conv,
  downsample,
  group_norm,
  remat_policy,
  upsample_conv,
)
from ldm_jax.nn.transformer import PixelAttention

EPSILON = 1e-6  # of every norm in the autoencoder; the U-Net's is 1e-5


@dataclasses.dataclass(frozen=True)
class Step:
  """A step of an encoder or decoder; a program may compute some of them only.

  Attributes:
    level: of the step's input, whose h and w are halved `level` times.
    reach: lines above and below on which a line of the result depends if the
      norms' moments are given, counted at the finer of input and result; None
      where attention makes it depend on all.
    apply: of the input, inside the network's compact method.
  """

  level: int
  reach: int | None
  apply: Callable[[Array], Array]


@dataclasses.dataclass(frozen=True)
class ConvStack:
  """The convolutional stack of encoder and decoder, which mirror each other.

  Attributes:
    channels: width of the first level, multiplied per level.
    blocks: residual blocks per level of the encoder; the decoder has one more.
    attention_levels: levels whose every block is followed by attention.
    has_mid_attention: attention at the lowest resolution (in all published
      ones but vq-f4-noattn).
    groups: of the group norms; 32 wherever the widths allow it.
    remat: rematerialisation of blocks; see `remat_policy`.
    dtype: of computation; norms, softmax and results stay float32.
  """

  channels: Count = 128
  multipliers: tuple[Count, ...] = (1, 2, 4, 4)
  blocks: Natural = 2
  attention_levels: tuple[Natural, ...] = ()
  has_mid_attention: bool = True
  dropout: Below1 = 0.0
  groups: Count = 32
  remat: Remat = "off"
  attention_backend: AttentionBackend = "auto"
  dtype: DTypeLike = "float32"

  def __post_init__(self):
    check_widths(self.channels, self.multipliers, self.groups)

  @property
  def halvings(self) -> int:
    """How many times h and w are halved."""
    return len(self.multipliers) - 1

  def level_steps(self, level: int, blocks: int, side: str) -> Iterator[Step]:
    """`blocks` residual blocks, each with attention if the level has it."""
    for i in range(blocks):
      name = f"{side}_{level}_block_{i}"
      yield self.block_step(level, name)
      if level in self.attention_levels:
        yield self.attention_step(level, f"{side}_{level}_attention_{i}")

  def up_steps(self, level: int) -> Iterator[Step]:
    """A level of the decoder, and the doubling to the next finer one."""
    yield from self.level_steps(level, self.blocks + 1, "up")
    if level > 0:
      double = lambda h: upsample_conv(
        h, h.shape[-1], name=f"up_{level}_upsample", dtype=self.dtype
      )
      yield Step(level, 1, double)

  def up_level(self, h: Array, level: int) -> Array:
    """Applies `up_steps`."""
    return _applied(self.up_steps(level), h)

  def middle(self, h: Array) -> Array:
    """Applies `middle_steps`."""
    return _applied(self.middle_steps(), h)

  def middle_steps(self) -> Iterator[Step]:
    """Block, attention, block at the lowest resolution."""
    yield self.block_step(self.halvings, "mid_block_0")
    if self.has_mid_attention:
      yield self.attention_step(self.halvings, "mid_attention")
    yield self.block_step(self.halvings, "mid_block_1")

  def block_step(self, level: int, name: str) -> Step:
    """A residual block, of two convolutions, as a step."""
    multiplier = self.multipliers[level]
    return Step(level, 2, lambda h: self.block(h, multiplier, name))

  def attention_step(self, level: int, name: str) -> Step:
    """Self-attention as a step."""
    return Step(level, None, lambda h: self.attention(h, name))

  def out(self, h: Array, features: int) -> Array:
    """Group norm, silu and the last convolution."""
    h = group_norm(
      h,
      name="norm_out",
      groups=self.groups,
      epsilon=EPSILON,
      dtype=self.dtype,
      is_activated=True,
    )
    return conv(h, features, name="conv_out", dtype=self.dtype)

  def block(self, h: Array, multiplier: int, name: str) -> Array:
    """One residual block without an embedding."""
    block = remat_policy(self.remat, ResBlock)(
      self.channels * multiplier,
      epsilon=EPSILON,
      is_zero=False,
      dropout=self.dropout,
      groups=self.groups,
      dtype=self.dtype,
      name=name,
    )
    return block(h)

  def attention(self, h: Array, name: str) -> Array:
    """Self-attention with one head over all pixels."""
    attention = remat_policy(self.remat, PixelAttention)(
      epsilon=EPSILON,
      groups=self.groups,
      attention_backend=self.attention_backend,
      dtype=self.dtype,
      name=name,
    )
    return attention(h)


def _applied(steps: Iterable[Step], h: Array) -> Array:
  for step in steps:
    h = step.apply(h)
  return h


class Encoder(nn.Module):
  """Images to `features` channels at the lowest resolution."""

  trunk: ConvStack
  features: int
  has_quant_conv: bool = True

  def steps(self) -> list[Step]:
    """All steps, of images first."""
    trunk, dtype, last = self.trunk, self.trunk.dtype, self.trunk.halvings

    def halve(level: int) -> Step:
      name = f"down_{level}_downsample"
      down = lambda h: downsample(h, name=name, padding=(0, 1), dtype=dtype)
      return Step(level, 1, down)

    first = lambda h: conv(h, trunk.channels, name="conv_in", dtype=dtype)
    steps = [Step(0, 1, first)]
    for level in range(last + 1):
      steps += trunk.level_steps(level, trunk.blocks, "down")
      if level < last:
        steps.append(halve(level))
    steps += trunk.middle_steps()
    steps.append(Step(last, 1, lambda h: trunk.out(h, self.features)))
    if self.has_quant_conv:
      quant = lambda h: conv(
        h, self.features, name="quant_conv", size=1, dtype=dtype
      )
      steps.append(Step(last, 0, quant))
    return [*steps, Step(last, 0, lambda h: h.astype(jnp.float32))]

  @nn.compact
  def __call__(
    self, images: Float[Array, "b H W k"], part: slice = slice(None)
  ) -> Float[Array, "b h w d"]:
    """Applies the steps, or a part of them to the result of those before."""
    return _applied(self.steps()[part], images)


class Decoder(nn.Module):
  """Latents to images; level 0 is the finest, as in the encoder."""

  trunk: ConvStack
  features: int
  has_quant_conv: bool = True

  def steps(self) -> list[Step]:
    """All steps, of latents first."""
    trunk, dtype, last = self.trunk, self.trunk.dtype, self.trunk.halvings
    width = trunk.channels * trunk.multipliers[-1]

    quant = lambda h: conv(
      h, self.features, name="post_quant_conv", size=1, dtype=dtype
    )
    first = lambda h: conv(h, width, name="conv_in", dtype=dtype)
    steps = [Step(last, 0, quant)] if self.has_quant_conv else []
    steps += [Step(last, 1, first), *trunk.middle_steps()]
    for level in reversed(range(last + 1)):
      steps += trunk.up_steps(level)
    out = lambda h: trunk.out(h, 3).astype(jnp.float32)
    return [*steps, Step(0, 1, out)]

  @nn.compact
  def __call__(
    self, latents: Float[Array, "b h w k"], part: slice = slice(None)
  ) -> Float[Array, "b H W d"]:
    """Applies the steps, or a part of them to the result of those before."""
    return _applied(self.steps()[part], latents)
