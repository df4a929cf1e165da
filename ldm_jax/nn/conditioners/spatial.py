"""Conditioners that read maps, pictures and what is known of other pictures.

What was drawn for x_t's own pixels is laid beside it; a picture that the first
stage must look at first comes as that stage's latents (see
`latent_diffusion.py`). None of them says more than it is given: their null is
zeros.
"""

from typing import Any, Literal

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from ldm_jax.nn.conditioners.embedders import Condition, zero_where
from ldm_jax.nn.layers import dense


class SegmentationEmbedder(nn.Module):
  """A segmentation map, made as small as the latents.

  LDM's SpatialRescaler (Rombach et al. 2022, appendix E.2.2): classes one-hot,
  `halvings` times the mean of 2 x 2 pixels, a 1 x 1 convolution without bias.
  Its channels lie beside x_t; or, as tokens for cross-attention, each cell is
  one and has a learned position.

  Attributes:
    classes: the map's values are 0 to classes - 1; others are no class.
    width: channels, or features of a token.
    positions: number of cells, if they are tokens.
    reads: the batch's map, of x_t's size times 2^halvings.
    drop_rate: how often training says nothing instead; LDM's model never does.
  """

  classes: int = 182
  width: int = 3
  halvings: int = 2
  joins: Literal["concat", "context"] = "concat"
  positions: int = 0
  input_key: str = "segmap"
  drop_rate: float = 0.0

  is_frozen = False

  @property
  def has_unconditional(self) -> bool:
    """Whether training sometimes left it out."""
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
    places = self.param("positions", normal, tokens.shape[1:])
    return Condition(context=tokens + places)


@flax.struct.dataclass
class MaskedLatents:
  """A picture of which a part is hidden, as the U-Net reads it.

  Attributes:
    latents: [b h w c], scaled, of the picture with its hole.
    mask: bool [b h w 1], true in the hole.
  """

  latents: Any
  mask: Any


class MaskedImage(nn.Module):
  """What is left of a picture, and where its hole is; no parameters.

  The pixels of the hole are `hole` before the first stage looks at them.
  "sd": grey; the mask (1 in the hole) lies before the latents. "ldm": black;
  the latents lie before the mask, which is 1 in the hole and -1 elsewhere
  (LDM's inpainting, Rombach et al. 2022, section 4.5).

  Attributes:
    reads: the batch's mask, bool, of the size of its image.
    drop_rate: how often training says nothing instead.
  """

  convention: Literal["sd", "ldm"] = "sd"
  input_key: str = "mask"
  drop_rate: float = 0.0

  is_frozen = False

  @property
  def has_unconditional(self) -> bool:
    """Whether training sometimes left it out."""
    return self.drop_rate > 0

  @property
  def masked_value(self) -> float:
    """The value of hidden pixels, in [-1, 1]."""
    return {"sd": 0.0, "ldm": -1.0}[self.convention]

  def mask_images(
    self, images: Float[Array, "b H W 3"], masks: Bool[Array, "b H W"]
  ) -> Float[Array, "b H W 3"]:
    """The pictures with their holes."""
    return jnp.where(masks[..., None], self.masked_value, images)

  def __call__(self, seen: MaskedLatents, drop: Bool[Array, " b"]) -> Condition:
    mask = seen.mask.astype(seen.latents.dtype)
    if self.convention == "sd":
      beside = [mask, seen.latents]
    else:
      beside = [seen.latents, 2 * mask - 1]
    return Condition(concat=zero_where(jnp.concatenate(beside, axis=-1), drop))


def subsample_mask(masks: Any, stride: int) -> Any:
  """A mask of latents: the first pixel of every cell, [b h w 1].

  As LDM's and Stable Diffusion's inpainting models were trained.
  """
  return masks[:, ::stride, ::stride, None]


@flax.struct.dataclass
class NoisyLowResolution:
  """A small picture with some noise, as an upscaler reads it.

  Attributes:
    image: [b h w 3], about [-1, 1], of the size of the latents.
    level: [b], the time of its noise, whole.
  """

  image: Any
  level: Any


class LowResolution(nn.Module):
  """A small picture beside x_t, and how noisy it is; no parameters.

  LDM's super-resolution reads it as it is (Rombach et al. 2022, section 4.4).
  Stable Diffusion's x4 upscaler reads it with noise, whose level is told as a
  one-hot vector (noise augmentation, Ho et al. 2022, section 4.2).

  Attributes:
    levels: entries of that vector; 0 tells none, and the picture has no noise.
    max_train_level: training draws levels below it.
    reads: the batch's small picture, uint8.
    drop_rate: how often training says nothing instead; the level stays.
  """

  levels: int = 0
  max_train_level: int = 350
  input_key: str = "low"
  drop_rate: float = 0.0

  is_frozen = False

  @property
  def has_unconditional(self) -> bool:
    """Whether training sometimes left it out."""
    return self.drop_rate > 0

  def __post_init__(self):
    super().__post_init__()
    if self.levels and not 0 < self.max_train_level <= self.levels:
      raise ValueError(
        f"max_train_level={self.max_train_level} must be from 1 to "
        f"levels={self.levels}"
      )

  def __call__(
    self, seen: NoisyLowResolution, drop: Bool[Array, " b"]
  ) -> Condition:
    vector = jax.nn.one_hot(seen.level, self.levels) if self.levels else None
    return Condition(concat=zero_where(seen.image, drop), vector=vector)


class DepthMap(nn.Module):
  """How far away what is seen lies, beside x_t; no parameters.

  Stable Diffusion 2's depth model reads MiDaS' depth, from the farthest cell
  of a picture, -1, to the nearest, 1.

  Attributes:
    cell: sides of the map's cells that become one of x_t's, by their mean.
    reads: the batch's depths.
    drop_rate: how often training says nothing instead.
  """

  cell: int = 8
  input_key: str = "depth"
  drop_rate: float = 0.0

  is_frozen = False

  @property
  def has_unconditional(self) -> bool:
    """Whether training sometimes left it out."""
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
  """Finished embeddings as tokens, such as those of neighbours; no parameters.

  Retrieval-augmented diffusion (Blattmann et al. 2022, section 3.1): CLIP's
  embeddings of the k nearest pictures of a database are the context.

  Attributes:
    width: of an embedding.
    reads: the batch's embeddings.
    drop_rate: how often training says nothing instead.
  """

  width: int = 768
  input_key: str = "neighbours"
  drop_rate: float = 0.1

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
