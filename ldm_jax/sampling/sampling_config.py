"""The inputs of a `SamplingEngine`: arrays and numbers."""

import dataclasses
from collections.abc import Collection
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, UInt8
from numpy import ndarray

from ldm_jax.diffusion.guidance import ClassifierFreeGuidance, Guidance
from ldm_jax.diffusion.samplers import SamplerConfig


@dataclasses.dataclass(frozen=True)
class Conditioning:
  """Inputs of the conditioners, by the array that each reads.

  Attributes:
    raw: arrays [b ...], one row per image: token ids, labels, maps, ...
    is_null: per conditioner bool [b], true where it is unconditional.
    weights: by the text conditioner's name the weights of its tokens, [b l]
      or, with one row per text encoder, [b e l]; empty without weights.
    empty: by the same name its input for the empty prompt, from which weights
      are measured.
  """

  # Any: as a tree it carries arrays of either library.
  raw: dict[str, Any]
  is_null: dict[str, Any]
  weights: dict[str, Any] = dataclasses.field(default_factory=dict)
  empty: dict[str, Any] = dataclasses.field(default_factory=dict)

  def rows(self, places: Int[ndarray, " n"]) -> "Conditioning":
    """The conditioning of some of the images."""
    return jax.tree.map(lambda x: x[places], self)

  def with_images(
    self, images: dict[str, Any], null: Collection[str] = ()
  ) -> "Conditioning":
    """Adds the inputs of concatenating conditioners, such as masked images.

    Args:
      images: by the name that each conditioner reads.
      null: names of those that are unconditional.
    """
    if not images:
      return self
    is_null = {
      name: jnp.full(len(jax.tree.leaves(each)[0]), name in null)
      for name, each in images.items()
    }
    return Conditioning(
      self.raw | images, self.is_null | is_null, self.weights, self.empty
    )


jax.tree_util.register_dataclass(Conditioning)


class PromptVariant(NamedTuple):
  """The conditions of some of the steps.

  Attributes:
    positives: one, or several that are composed (Liu et al. 2022, eq. 11).
    negative: the other side of guidance.
    weights: [n k] of several positives; None of one.
  """

  positives: tuple[Conditioning, ...]
  negative: Conditioning
  weights: Any = None

  def rows(self, places: Int[ndarray, " n"]) -> "PromptVariant":
    """The conditions of some of the images."""
    return jax.tree.map(lambda x: x[places], self)


class ConditionGroup(NamedTuple):
  """Images whose conditions have the same shapes, generated together.

  Attributes:
    places: of the images in their call, from 0, rising; the rows of every
      conditioning are these images.
    variants: conditions, each of some of the steps.
    schedule: (fraction of the network's evaluations at which it ends, place of
      its variant) in turn; the last ends at 1.
    loras: (name, scale) of those that the prompts add to the model.
  """

  places: Int[ndarray, " n"]
  variants: tuple[PromptVariant, ...]
  schedule: tuple[tuple[float, int], ...] = ((1.0, 0),)
  loras: tuple[tuple[str, float], ...] = ()


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
  """How to sample. Only a new size, or switching guidance on or off (scale 1 is
  off), compiles again; the rest is data.

  Attributes:
    height, width: of the images, in pixels.
    sampler_config: sampler, steps and timesteps.
    guidance: `ClassifierFreeGuidance`, or a user-defined one.
    seed: an image's noise is a function of (seed, index).
    strength: of image to image, the fraction of the steps that is taken, above
      0 to 1; 1 starts from pure noise.
    threshold: (quantile, largest value) of dynamic thresholding, or None.
    window: side in pixels of the overlapping windows in which a large image is
      denoised; None denoises it whole.
    tile: side in pixels of the tiles in which the first stage encodes and
      decodes; None does it whole.
    noise_level: of upscaling, the time, on a schedule of its own, to which the
      low-resolution image is noised.
    control: scale of a ControlNet, and the values of t / T between which it is
      used.
    classifier_scale: of classifier guidance.
    image_guidance: towards the image that is edited  (Brooks et al. 2023).
  """

  height: int
  width: int
  sampler_config: SamplerConfig = SamplerConfig()
  guidance: Guidance = ClassifierFreeGuidance(3.0)
  seed: int = 0
  strength: float = 1.0
  threshold: tuple[float, float] | None = None
  window: int | None = None
  tile: int | None = None
  noise_level: int = 20
  control: tuple[float, float, float] = (1.0, 0.0, 1.0)
  classifier_scale: float = 1.0
  image_guidance: Guidance = ClassifierFreeGuidance()

  def __post_init__(self):
    if not 0 < self.strength <= 1:
      raise ValueError(
        f"strength must be above 0 and at most 1, got {self.strength}"
      )
    self.guidance.check()
    self.image_guidance.check()

  @property
  def needs_negative(self) -> bool:
    """Whether the negative side of guidance is used at all."""
    guidances = self.guidance, self.image_guidance
    return any(each.needs_unconditional() for each in guidances)


@dataclasses.dataclass(frozen=True)
class ImageInputs:
  """Images that sampling starts from or is conditioned on, one per sample.

  Attributes:
    images: to change, to inpaint, or to upscale.
    masks: true where new content is generated; None changes the whole image.
    hints: conditioning images of a ControlNet.
  """

  images: UInt8[ndarray, "n h w 3"] | None = None
  masks: Bool[ndarray, "n h w"] | None = None
  hints: UInt8[ndarray, "n h w 3"] | None = None

  def rows(self, places: Int[ndarray, " b"]) -> "ImageInputs":
    """The inputs of some of the samples."""
    pick = lambda array: None if array is None else array[places]
    return ImageInputs(pick(self.images), pick(self.masks), pick(self.hints))


@dataclasses.dataclass(frozen=True)
class GenerationInputs:
  """How many images to generate, and from what.

  Attributes:
    count: images in all.
    batch: images at a time, at most.
    initial_noise: [first + count, h, w, c] of unit variance in place of the
      seed's, by index of the image; in an interpolation, of its ends. Or None.
    output: decoded images, or latents as they leave the sampler.
    image_inputs: of image to image, inpainting, upscaling and ControlNet.
    variation: 0 to 1, how far each image's noise lies from that of image 0
      towards its own (slerp); None uses its own.
    fractions: [count] of an interpolation: from the noise of image 0 to that
      of image 1 or, all with the noise of image 0, from the conditioning to
      `end`. None for none.
    end: see `fractions`.
    labels: [count], classes of classifier guidance.
    first: index of the first image; the others follow.
    batch_row: None, or to repeat one image bit for bit: the row in which it
      was computed. A batch then has `batch` rows, all of them that image.
  """

  count: int
  batch: int
  initial_noise: Float[ndarray, "m h w c"] | None = None
  output: Literal["images", "latents"] = "images"
  image_inputs: ImageInputs = ImageInputs()
  variation: float | None = None
  fractions: Float[ndarray, " n"] | None = None
  end: Conditioning | None = None
  labels: Int[ndarray, " n"] | None = None
  first: int = 0
  batch_row: int | None = None

  def __post_init__(self):
    if self.batch_row is not None and self.count != 1:
      raise ValueError(f"batch_row is of one image, got {self.count}")
