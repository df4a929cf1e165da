"""What to generate: one request for the command, Python and servers."""

import dataclasses
import logging
import math
import os
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from PIL import Image

from ldm_jax.data.text.prompt_cleaning import clean_prompt
from ldm_jax.diffusion.guidance import ClassifierFreeGuidance, Guidance
from ldm_jax.diffusion.samplers import Sampler
from ldm_jax.diffusion.samplers.sampler_names import (
  parse_sampler_name,
  parse_timestep_spacing,
)
from ldm_jax.errors import ConfigError, config_errors
from ldm_jax.fields.arguments import check_request
from ldm_jax.runtime.devices import processes

logger = logging.getLogger(__name__)

ImageLike = str | os.PathLike | Image.Image | np.ndarray
ArrayLike = str | os.PathLike | np.ndarray
Number = int | float

MAX_NUMBER = 1e4  # of any scale
SEEDS = 2**64  # how many there are, as in ComfyUI
DRAWN = -1  # the seed in whose place one is drawn


@dataclasses.dataclass(frozen=True)
class Replay:
  """The batch in which an image was computed, to repeat it bit for bit.

  Attributes:
    count: images of the original request; the noise of torch depends on it.
    batch: rows of the batch, rounded up to the number of devices.
    row: of the image, in its batch.
    chunks: of 75 tokens, that both sides have at least. Earlier versions gave
      all prompts of a request those of the longest, and wrote them here.
  """

  count: int
  batch: int
  row: int
  chunks: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationRequest:
  """What to generate. Fields left out take the model's defaults.

  Image-like fields take a path, a PIL image or an array (uint8 [h w 3]).

  Attributes:
    prompt: text, or several texts, each of which gives `num` images.
    negative_prompt: what guidance steers away from; None is unconditional.
    class_label: number or name, for models of classes, and of a classifier.
    segmap: a map of classes: grey values or palette indices, uint8 [h w].
    depth: of models with depth conditioning; larger is nearer, [h w].
    layout: boxes [{"class": 3, "box": [left, top, right, bottom]}, ...] with
      sides in [0, 1], or the path of such a JSON file.
    neighbours: embeddings [k d] of retrieval-augmented models, or an .npy.
    conditions: inputs of user-defined conditioners, by their `input_key`: an
      array of one example, or an .npy.
    image: to change (image to image), to inpaint, or to upscale.
    mask: white where new content is generated.
    outpaint: pixels added at the left, top, right and bottom of the image.
    strength: above 0 to 1, the fraction of the steps that is taken from the
      noised image; by default 0.8, and 1 under a mask.
    invert: return the noise that DDIM inversion finds for the image, as
      latents, to be used as `initial_latents`.
    noise_level: of upscaling, the time to which the image is noised; 20.
    controlnet: folder of a ControlNetModel of diffusers.
    control_image: its conditioning image, such as edges or depth.
    control_scale: of its residuals.
    control_interval: values of t / T, 0 the image, between which it is used.
    classifier: run of a classifier of noisy latents, guides to class_label.
    classifier_scale: of classifier guidance.
    num: images per prompt.
    height, width: in pixels; of `image` if there is one.
    sampler: any spelling, such as "ddim", "Euler a", "DPM++ 2M Karras" or
      "UniPCMultistepScheduler"; or a function, see examples/.
    timestep_spacing: leading, trailing, linspace, quadratic, karras,
      exponential, beta, sgm_uniform, simple, kl_optimal or lcm.
    times: the steps' times, decreasing within [0, T), in place of steps.
    sigmas: decreasing sigma / signal in place of steps; of flow models s in
      (0, 1], not shifted.
    shift: of flow models, moves the steps' times towards noise; see docs. Not
      with times or sigmas.
    order: of multistep samplers.
    eta: scale of the noise that samplers add; 0 for DDIM, 1 for ancestral.
    compat: "diffusers" reproduces diffusers' timesteps and rounding.
    steps: of the sampler, 1 to the length of the schedule.
    guidance: scale of classifier-free guidance; 1 is none. Or a user-defined
      guidance, see diffusion.guidance.
    guidance_rescale: 0 to 1, how far the standard deviation of the guided
      output is scaled back (Lin et al. 2023).
    guidance_interval: values of t / T between which to guide.
    image_guidance_scale: towards the image of a model that edits it; 1.5.
    threshold: (quantile, largest value) of dynamic thresholding of x0.
    seed: 0 to 2**64 - 1; an image is a function of (seed, index). For -1 a
      `Pipeline` draws one below 2**32, which it logs and writes to metadata.
    index: of the first image, by default 0. With `interpolate` the one image
      of the interpolation to generate.
    variation: 0 to 1, how far each image's noise is from that of image 0.
    interpolate: number of images from one prompt to another (two prompts), or
      from the first noise to the second (one or none).
    emphasis: read AUTOMATIC1111's syntax: (word:1.3), (word) and [word] are
      weights, BREAK begins a chunk, AND composes, [a:b:0.5] and [a|b] change
      from step to step.
    rng: of the noise: "jax", or "torch" as in other programs on a CPU.
    initial_latents: [n h w c] of unit variance, or an .npy, in place of noise.
    window: side in pixels of overlapping windows in which to denoise.
    tile: side in pixels of the tiles in which to encode and decode.
    batch: images at a time.
    clip_skip: skips clip_skip - 1 last blocks of CLIP, in addition to those the
      model skips by itself; 1 is as trained.
    output: of a result: PIL images, uint8 arrays, or latents.
    replay: to repeat one image bit for bit; see `Pipeline.request_of`.

  Raises:
    ConfigError: a value is out of its range, or two exclude each other.
  """

  prompt: str | Sequence[str] = ()
  negative_prompt: str | None = None
  class_label: int | str | None = None
  segmap: ImageLike | None = None
  depth: ImageLike | None = None
  layout: str | os.PathLike | Sequence[Mapping[str, Any]] | None = None
  neighbours: ArrayLike | None = None
  conditions: Mapping[str, ArrayLike] | None = None
  image: ImageLike | None = None
  mask: ImageLike | None = None
  outpaint: tuple[int, int, int, int] | None = None
  strength: Number | None = None
  invert: bool = False
  noise_level: int | None = None
  controlnet: str | os.PathLike | None = None
  control_image: ImageLike | None = None
  control_scale: Number = 1.0
  control_interval: tuple[Number, Number] = (0.0, 1.0)
  classifier: str | os.PathLike | None = None
  classifier_scale: Number = 1.0
  num: int = 1
  height: int | None = None
  width: int | None = None
  sampler: str | Sampler | None = None
  timestep_spacing: str | None = None
  times: tuple[Number, ...] = ()
  sigmas: tuple[Number, ...] = ()
  shift: Number | None = None
  order: int | None = None
  eta: Number | None = None
  compat: Literal["diffusers"] | None = None
  steps: int = 50
  guidance: Number | Guidance | None = None
  guidance_rescale: Number = 0.0
  guidance_interval: tuple[Number, Number] = (0.0, 1.0)
  image_guidance_scale: Number | None = None
  threshold: tuple[Number, Number] | None = None
  seed: int = 0
  index: int | None = None
  variation: Number | None = None
  interpolate: int | None = None
  emphasis: bool = False
  rng: Literal["jax", "torch"] = "jax"
  initial_latents: ArrayLike | None = None
  window: int | None = None
  tile: int | None = None
  batch: int = 16
  clip_skip: int | None = None
  output: Literal["pil", "numpy", "latents"] = "pil"
  replay: Replay | None = None

  def __post_init__(self):
    check_request(self)
    with config_errors():
      self._clean()
      self._check_numbers()
      self._check_images()
      self._check_interpolation()
      self._check_names()

  def with_drawn_seed(self) -> "GenerationRequest":
    """The request with a number in place of seed -1, on all processes."""
    if self.seed != DRAWN:
      return self
    drawn = np.uint32([secrets.randbelow(2**32)]) * processes.is_first()
    (seed,) = processes.sum_over([drawn])[0].tolist()
    logger.info("seed %d", seed)
    return dataclasses.replace(self, seed=seed)

  @property
  def prompts(self) -> tuple[str, ...]:
    """All prompts; none if the request has none."""
    return (self.prompt,) if isinstance(self.prompt, str) else self.prompt

  def _clean(self) -> None:
    """Prompts without control characters; sigmas without the image's own 0."""
    clean = lambda text: clean_prompt(text, logger.warning)
    is_one = isinstance(self.prompt, str)
    prompt = clean(self.prompt) if is_one else tuple(map(clean, self.prompt))
    object.__setattr__(self, "prompt", prompt)
    if self.negative_prompt:
      object.__setattr__(self, "negative_prompt", clean(self.negative_prompt))
    if self.sigmas and self.sigmas[-1] == 0:
      object.__setattr__(self, "sigmas", self.sigmas[:-1])

  def _check_numbers(self) -> None:
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if isinstance(value, float) and not abs(value) <= MAX_NUMBER:
        raise ConfigError(
          f"{field.name} must be within +-{MAX_NUMBER:g}, got {value}"
        )
    for name in ("num", "batch", "window", "tile"):
      value = getattr(self, name)
      if value is not None and value < 1:
        raise ConfigError(f"{name} must be 1 or more, got {value}")
    if self.seed != DRAWN and not 0 <= self.seed < SEEDS:
      raise ConfigError(
        f"seed must be 0 to {SEEDS - 1}, or -1 to draw one; got {self.seed}"
      )
    if self.index is not None and not 0 <= self.index < 2**31:
      raise ConfigError(f"index must be 0 to 2**31 - 1, got {self.index}")
    for name in ("times", "sigmas"):
      if not all(map(math.isfinite, getattr(self, name))):
        raise ConfigError(f"{name} must be finite, got {getattr(self, name)}")
    guidance = 1.0 if self.guidance is None else self.guidance
    if isinstance(guidance, Number):
      options = self.guidance_rescale, *self.guidance_interval
      guidance = ClassifierFreeGuidance(guidance, *options)
    guidance.check()

  def _check_images(self) -> None:
    if self.image is None:
      if self.mask is not None or self.outpaint is not None:
        raise ConfigError("mask and outpaint need an image (--image)")
      if self.strength is not None:
        raise ConfigError("strength is of an image; give one (--image)")
    if self.mask is not None and self.outpaint is not None:
      raise ConfigError("outpaint makes its own mask; leave mask out")
    if self.outpaint is not None and (
      len(self.outpaint) != 4
      or min(self.outpaint) < 0
      or not any(self.outpaint)
    ):
      raise ConfigError(
        "outpaint takes four numbers of pixels, left, top, right and bottom, "
        f"such as 0,0,64,0; got {self.outpaint}"
      )
    if self.strength is not None and not 0 < self.strength <= 1:
      raise ConfigError(
        f"strength must be above 0 and at most 1, got {self.strength}"
      )
    if self.invert and (self.image is None or self.output != "latents"):
      raise ConfigError(
        "invert needs an image (--image) and output latents (--output latent)"
      )
    if self.control_image is not None and self.controlnet is None:
      raise ConfigError("control_image is for a ControlNet (--controlnet)")

  def _check_interpolation(self) -> None:
    if self.variation is not None and not 0 <= self.variation <= 1:
      raise ConfigError(f"variation must be 0 to 1, got {self.variation}")
    if self.replay is not None and (self.num != 1 or len(self.prompts) > 2):
      raise ConfigError("replay repeats one image; leave num or replay out")
    count, prompts = self.interpolate, len(self.prompts)
    if count is None:
      return
    if self.variation is not None:
      raise ConfigError("interpolate and variation exclude each other")
    if prompts > 2 or count < 2:
      raise ConfigError(
        "interpolate N makes N >= 2 images between two prompts, or with one "
        f"or none between two noises; got N={count} and {prompts} prompts"
      )
    if self.num > 1:
      raise ConfigError("interpolate sets the number; leave num out (--num)")
    if self.index is not None and self.index >= count:
      raise ConfigError(f"index must be 0 to {count - 1}, got {self.index}")

  def _check_names(self) -> None:
    if isinstance(self.sampler, str):
      parse_sampler_name(self.sampler)
    if self.timestep_spacing is not None:
      parse_timestep_spacing(self.timestep_spacing)
    if self.times and self.sigmas:
      raise ConfigError("give times or sigmas, not both")
    if self.shift is not None and (self.times or self.sigmas):
      raise ConfigError("times and sigmas are not shifted; leave shift out")
    if self.initial_latents is not None and self.rng == "torch":
      raise ConfigError("initial_latents replace rng; give one of them")
