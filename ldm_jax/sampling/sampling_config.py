"""What a studio is told: how to sample, what is said, what is given."""

import dataclasses
from collections.abc import Collection
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, UInt8
from numpy import ndarray

from ldm_jax.diffusion.guidance import Guidance
from ldm_jax.diffusion.samplers import SamplerConfig


@dataclasses.dataclass(frozen=True)
class Conditioning:
  """What is said to the conditioners, by what each reads.

  Attributes:
    raw: arrays [b ...], one row per image.
    is_null: per conditioner, where nothing is said, bool [b].
    weights: [b l], of the tokens of the context, or None.
    empty: what `raw` is where nothing is said; weights are measured from it.
  """

  # Any: as a tree it carries arrays of either library.
  raw: dict[str, Any]
  is_null: dict[str, Any]
  weights: Any = None
  empty: dict[str, Any] | None = None

  def rows(self, places: Int[ndarray, " n"]) -> "Conditioning":
    """The same for some of the images."""
    return jax.tree.map(lambda x: x[places], self)

  def seeing(
    self, seen: dict[str, Any], unsaid: Collection[str] = ()
  ) -> "Conditioning":
    """The same beside pictures, by what reads them; nothing is said of those
    that are `unsaid`."""
    if not seen:
      return self
    nulls = {
      name: jnp.full(len(jax.tree.leaves(each)[0]), name in unsaid)
      for name, each in seen.items()
    }
    empty = None if self.empty is None else self.empty | seen
    return Conditioning(
      self.raw | seen, self.is_null | nulls, self.weights, empty
    )


jax.tree_util.register_dataclass(Conditioning)


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
  """How to sample. Only the size, and whether guidance is on at all (scale 1
  turns it off), compile anew; the rest is data.

  Attributes:
    height, width: of the images, in pixels.
    recipe: sampler, steps and grid.
    guidance: classifier-free guidance.
    seed: an image's noise is a function of (seed, index).
    strength: of images that are given, how far back to begin: 1 is the whole
      way from noise.
    threshold: (quantile, most) of x0, or None; see `thresholded`.
    window: side of overlapping windows in which a large image is denoised, in
      pixels; None denoises it whole.
    tile: side of overlapping tiles in which the first stage encodes and
      decodes, in pixels; None does it whole.
    noise_level: of upscaling, how much noise the small image is given, as a
      time of its own schedule.
    classifier: scale of a classifier's guidance.
    control: scale of a ControlNet, and between which shares of the noise's
      time it speaks.
  """

  height: int
  width: int
  sampler_config: SamplerConfig = SamplerConfig()
  guidance: Guidance = Guidance(3.0)
  seed: int = 0
  strength: float = 1.0
  threshold: tuple[float, float] | None = None
  window: int | None = None
  tile: int | None = None
  noise_level: int = 20
  control: tuple[float, float, float] = (1.0, 0.0, 1.0)
  classifier: float = 1.0

  def __post_init__(self):
    if not 0 < self.strength <= 1:
      raise ValueError(
        f"strength must be above 0 and at most 1, got {self.strength}"
      )
    self.guidance.check()


@dataclasses.dataclass(frozen=True)
class ImageInputs:
  """Pictures that an order begins with, one per image.

  Attributes:
    images: to change, to fill in, or to enlarge.
    masks: true where something new is to be drawn; None changes everything.
    hints: what a ControlNet reads.
  """

  images: UInt8[ndarray, "n h w 3"] | None = None
  masks: Bool[ndarray, "n h w"] | None = None
  hints: UInt8[ndarray, "n h w 3"] | None = None

  def rows(self, places: Int[ndarray, " b"]) -> "ImageInputs":
    """The same for some of the images."""
    pick = lambda array: None if array is None else array[places]
    return ImageInputs(pick(self.images), pick(self.masks), pick(self.hints))


@dataclasses.dataclass(frozen=True)
class GenerationInputs:
  """How much to draw, and of what kind.

  Attributes:
    count: images in all.
    batch: images at a time.
    noise: [count h w c] of unit variance in place of the seed's, or None; for
      a way from one picture to another, of its ends.
    output: pictures, or scaled latents as they leave the sampler.
    given: pictures to begin with.
    variation: each image's noise is so much its own and the rest the first
      one's, on the sphere; None is all its own.
    shares: [count] of the way from one picture to another, or None: from the
      seed's first noise to its second, or, all from the first, from what is
      said to `toward`.
    toward: see `shares`.
    labels: [count], what a classifier leads to.
    first: the index of the first image; the others' follow.
  """

  count: int
  batch: int
  noise: Float[ndarray, "m h w c"] | None = None
  output: Literal["images", "latents"] = "images"
  given: ImageInputs = ImageInputs()
  variation: float | None = None
  shares: Float[ndarray, " n"] | None = None
  toward: Conditioning | None = None
  labels: Int[ndarray, " n"] | None = None
  first: int = 0
