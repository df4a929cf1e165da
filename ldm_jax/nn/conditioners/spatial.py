"""Conditioners over maps and images, and over embeddings of other images.

Maps and images of x_t's own pixels are concatenated with x_t; an image that the
first stage encodes first comes as latents (see `concat_conditioning.py`). The
unconditional output of all of them is zeros.
"""

from typing import Any, Literal

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from ldm_jax.fields.limits import Count, Fraction, Natural
from ldm_jax.nn.conditioners.embedders import Condition, zero_where
from ldm_jax.nn.layers import dense


class SegmentationEmbedder(nn.Module):
  """A segmentation map, downsampled to the size of the latents.

  LDM's SpatialRescaler (Rombach et al. 2022, appendix E.2.2): classes one-hot,
  `halvings` times the mean of 2 x 2 pixels, a 1 x 1 convolution without bias.
  Its channels are concatenated with x_t, or each cell is a token for
  cross-attention, with a learned position.

  Attributes:
    classes: the map's values are 0 to classes - 1; other values have no class.
    width: channels, or features of a token.
    joins: "concat" or, for cross-attention, "context".
    positions: number of cells, if they are tokens.
    input_key: of the batch's map, of x_t's size times 2^halvings.
    drop_rate: fraction of training examples with zeros; LDM's is 0.
  """

  classes: Count = 182
  width: Count = 3
  halvings: Natural = 2
  joins: Literal["concat", "context"] = "concat"
  positions: Natural = 0
  input_key: str = "segmap"
  drop_rate: Fraction = 0.0

  is_frozen = False

  @property
  def has_unconditional(self) -> bool:
    """Whether training sometimes drops it; if not, guidance keeps it."""
    return self.drop_rate > 0

  @nn.compact
  def __call__(
    self, segmap: Integer[Array, "b H W"], drop: Bool[Array, " b"]
  ) -> Condition:
    count, height, width = segmap.shape
    side = 2**self.halvings
    if height % side or width % side:
      raise ValueError(
        f"a map of {height} x {width} cannot be halved {self.halvings} times; "
        f"its sides must be multiples of {side}"
      )
    shape = (count, height // side, side, width // side, side, self.classes)
    cells = jax.nn.one_hot(segmap, self.classes).reshape(shape).mean((2, 4))
    cells = dense(
      cells, self.width, name="rescale", use_bias=False, dtype="float32"
    )
    cells = zero_where(cells, drop)
    if self.joins == "concat":
      return Condition(concat=cells)
    tokens = cells.reshape(count, -1, self.width)
    if tokens.shape[1] != self.positions:
      raise ValueError(
        f"{tokens.shape[1]} cells of a map, but positions={self.positions}; "
        "set positions to their number"
      )
    normal = nn.initializers.normal(0.02)
    positions = self.param("positions", normal, tokens.shape[1:])
    return Condition(context=tokens + positions)


@flax.struct.dataclass
class MaskedLatents:
  """A masked image, as the U-Net takes it.

  Attributes:
    latents: [b h w c], scaled, of the masked image.
    mask: bool [b h w c2], true where the image is hidden; see
      `MaskedImage.cells`.
  """

  latents: Any
  mask: Any


class MaskedImage(nn.Module):
  """The latents of a masked image, and the mask; no parameters.

  Hidden pixels are set to `masked_value` before the first stage encodes them.
  "sd": grey; the mask (1 where hidden) is concatenated before the latents.
  "ldm": black; the mask comes after the latents, 1 where hidden and -1
  elsewhere (LDM's inpainting, Rombach et al. 2022, section 4.5). "flux": grey;
  after the latents comes the mask (1 where hidden) of every pixel of a cell, in
  a channel each (FLUX.1-Fill).

  Attributes:
    input_key: of the batch's mask, bool, of the size of its image.
    drop_rate: fraction of training examples with zeros.
  """

  convention: Literal["sd", "ldm", "flux"] = "sd"
  input_key: str = "mask"
  drop_rate: Fraction = 0.0

  is_frozen = False

  @property
  def has_unconditional(self) -> bool:
    """Whether training sometimes drops it; if not, guidance keeps it."""
    return self.drop_rate > 0

  @property
  def masked_value(self) -> float:
    """The value of hidden pixels, in [-1, 1]."""
    return -1.0 if self.convention == "ldm" else 0.0

  def mask_images(
    self, images: Float[Array, "b H W 3"], masks: Bool[Array, "b H W"]
  ) -> Float[Array, "b H W 3"]:
    """The images with hidden pixels set to `masked_value`."""
    return jnp.where(masks[..., None], self.masked_value, images)

  def cells(self, masks: Any, stride: int) -> Any:
    """The masks [b H W] at the size of latents, [b h w c2]."""
    if self.convention != "flux":
      return subsample_mask(masks, stride)
    count, height, width = masks.shape
    shape = count, height // stride, stride, width // stride, stride
    cells = masks.reshape(shape).transpose(0, 1, 3, 2, 4)
    return cells.reshape(*cells.shape[:3], stride * stride)

  def __call__(
    self, masked: MaskedLatents, drop: Bool[Array, " b"]
  ) -> Condition:
    mask = masked.mask.astype(masked.latents.dtype)
    channels = {
      "sd": [mask, masked.latents],
      "ldm": [masked.latents, 2 * mask - 1],
      "flux": [masked.latents, mask],
    }[self.convention]
    channels = jnp.concatenate(channels, axis=-1)
    return Condition(concat=zero_where(channels, drop))


def subsample_mask(masks: Any, stride: int) -> Any:
  """The mask of latents, [b h w 1]: the first pixel of every cell.

  As in the training of LDM's and Stable Diffusion's inpainting models.
  """
  return masks[:, ::stride, ::stride, None]


@flax.struct.dataclass
class NoisyLowResolution:
  """A low-resolution image with noise, as an upscaler takes it.

  Attributes:
    image: [b h w 3], about [-1, 1], of the size of the latents.
    level: [b], the noise level, a whole time of its schedule.
  """

  image: Any
  level: Any


class LowResolution(nn.Module):
  """A low-resolution image and its noise level; no parameters.

  In LDM's super-resolution it has no noise (Rombach et al. 2022, section 4.4).
  In Stable Diffusion's x4 upscaler it has noise, with the level as a one-hot
  vector (noise augmentation, Ho et al. 2022, section 4.2).

  Attributes:
    levels: entries of that vector; 0 for none, and an image without noise.
    max_train_level: training samples noise levels below it.
    input_key: of the batch's low-resolution image, uint8.
    drop_rate: fraction of training examples with zeros, which keep the level.
  """

  levels: Natural = 0
  max_train_level: Count = 350
  input_key: str = "low"
  drop_rate: Fraction = 0.0

  is_frozen = False

  @property
  def has_unconditional(self) -> bool:
    """Whether training sometimes drops it; if not, guidance keeps it."""
    return self.drop_rate > 0

  def __post_init__(self):
    super().__post_init__()
    if self.levels and not 0 < self.max_train_level <= self.levels:
      raise ValueError(
        f"max_train_level={self.max_train_level} must be from 1 to "
        f"levels={self.levels}"
      )

  def __call__(
    self, noisy: NoisyLowResolution, drop: Bool[Array, " b"]
  ) -> Condition:
    vector = jax.nn.one_hot(noisy.level, self.levels) if self.levels else None
    return Condition(concat=zero_where(noisy.image, drop), vector=vector)


class DepthMap(nn.Module):
  """A depth map, concatenated with x_t; no parameters.

  Stable Diffusion 2's depth model takes MiDaS' depth, from -1 at the farthest
  cell of an image to 1 at the nearest.

  Attributes:
    cell: side of the map's cells, whose mean is one pixel of x_t.
    input_key: of the batch's depth maps.
    drop_rate: fraction of training examples with zeros.
  """

  cell: Count = 8
  input_key: str = "depth"
  drop_rate: Fraction = 0.0

  is_frozen = False

  @property
  def has_unconditional(self) -> bool:
    """Whether training sometimes drops it; if not, guidance keeps it."""
    return self.drop_rate > 0

  def __call__(
    self, depth: Float[Array, "b H W"], drop: Bool[Array, " b"]
  ) -> Condition:
    count, height, width = depth.shape
    if height % self.cell or width % self.cell:
      raise ValueError(
        f"a depth of {height} x {width} does not divide into cells of "
        f"{self.cell}"
      )
    shape = (count, height // self.cell, self.cell, width // self.cell, -1)
    cells = depth.reshape(shape).mean((2, 4))
    low = cells.min((1, 2), keepdims=True)
    span = cells.max((1, 2), keepdims=True) - low
    cells = 2 * (cells - low) / jnp.maximum(span, 1e-6) - 1
    return Condition(concat=zero_where(cells[..., None], drop))


class NeighbourEmbeddings(nn.Module):
  """Precomputed embeddings of neighbours as tokens; no parameters.

  Retrieval-augmented diffusion (Blattmann et al. 2022, section 3.1): CLIP's
  embeddings of the k nearest images of a database are the context.

  Attributes:
    width: of an embedding.
    input_key: of the batch's embeddings.
    drop_rate: fraction of training examples with zeros.
  """

  width: Count = 768
  input_key: str = "neighbours"
  drop_rate: Fraction = 0.1

  has_unconditional = True
  is_frozen = False

  def __call__(
    self, rows: Float[Array, "b k d"], drop: Bool[Array, " b"]
  ) -> Condition:
    if rows.shape[2] != self.width:
      raise ValueError(
        f"embeddings of width {rows.shape[2]}, but the conditioner has "
        f"width={self.width}; set it to theirs"
      )
    return Condition(context=zero_where(rows.astype(jnp.float32), drop))
