"""The levels of a deep compression autoencoder."""

import dataclasses
import itertools

from jax.typing import DTypeLike
from jaxtyping import Array

from ldm_jax.fields.limits import Count, Natural
from ldm_jax.nn.deep_compression.blocks import (
  Activation,
  DCResBlock,
  EfficientViTBlock,
  Norm,
  Resampling,
)
from ldm_jax.nn.layers import Remat, remat_policy


@dataclasses.dataclass(frozen=True)
class DCLevel:
  """The blocks of one resolution of an encoder or decoder.

  Attributes:
    blocks: their number; 0 on the finest level leaves it to the first or last
      convolution, and its channels are not used.
    has_attention: blocks with linear attention, instead of residual blocks.
    scales: sizes of the neighbourhoods that attention reads in addition to
      pixels.
    norm: "rms"; "batch" is for published decoders, whose statistics are
      constants here.
    activation: of residual blocks; blocks with attention have "silu".
  """

  channels: Count = 128
  blocks: Natural = 2
  has_attention: bool = False
  scales: tuple[Count, ...] = ()
  norm: Norm = "rms"
  activation: Activation = "silu"

  def __post_init__(self):
    if any(size % 2 == 0 for size in self.scales):
      raise ValueError(f"scales={self.scales} must be odd numbers")
    if self.scales and not self.has_attention:
      raise ValueError(
        f"scales={self.scales} are of attention; set has_attention=True or "
        "scales=()"
      )
    if self.has_attention and self.activation != "silu":
      raise ValueError(
        f"activation={self.activation!r} is of residual blocks; blocks with "
        "attention need 'silu'"
      )


@dataclasses.dataclass(frozen=True)
class DCStack:
  """The levels of an encoder or of a decoder, finest first.

  The layers that change the resolution have shortcuts without parameters: the
  pixels as channels, averaged or repeated to the number that is needed.

  Attributes:
    resampling: "pixels" turns pixels into channels and back, "conv" has stride
      2 in the encoder and nearest-neighbour upsampling in the decoder.
    has_shortcut: averaged channels are added to the latents in an encoder,
      repeated latents to the first layer's output in a decoder.
    head_width: of attention.
  """

  levels: tuple[DCLevel, ...]
  resampling: Resampling = "pixels"
  has_shortcut: bool = True
  head_width: Count = 32

  def __post_init__(self):
    if len(self.levels) < 2:
      raise ValueError(f"a DCStack needs two levels or more, got {self.levels}")
    if not all(level.blocks for level in self.levels[1:]):
      raise ValueError(
        "every level but the finest needs blocks, got "
        f"blocks={tuple(level.blocks for level in self.levels)}"
      )
    for level in self.levels:
      if level.has_attention and level.channels < self.head_width:
        raise ValueError(
          f"channels={level.channels} hold no head of head_width="
          f"{self.head_width}; set head_width to {level.channels} or less"
        )
    widths = [level.channels for level in self.used]
    for fine, coarse in itertools.pairwise(widths):
      if 4 * fine % coarse:
        raise ValueError(
          f"channels={coarse} must divide four times the finer level's {fine}"
        )

  @property
  def used(self) -> tuple[DCLevel, ...]:
    """The levels with blocks."""
    return self.levels if self.levels[0].blocks else self.levels[1:]

  def block(
    self, h: Array, index: int, name: str, remat: Remat, dtype: DTypeLike
  ) -> Array:
    """One block of a level."""
    level = self.levels[index]
    if level.has_attention:
      kind = remat_policy(remat, EfficientViTBlock)
      block = kind(self.head_width, level.scales, level.norm, dtype, name=name)
    else:
      kind = remat_policy(remat, DCResBlock)
      block = kind(level.norm, level.activation, dtype, name=name)
    return block(h)
