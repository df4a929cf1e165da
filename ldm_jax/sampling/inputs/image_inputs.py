"""A request's images, resized to the size of what is generated."""

import dataclasses
import logging

import numpy as np
from jaxtyping import Bool, UInt8

from ldm_jax.diffusion.guidance import ClassifierFreeGuidance
from ldm_jax.errors import ConfigError
from ldm_jax.loaded_model import LoadedModel
from ldm_jax.nn.conditioners.source_image import SourceImage
from ldm_jax.nn.conditioners.spatial import LowResolution
from ldm_jax.sampling.inputs.files import read_rgb
from ldm_jax.sampling.inputs.resize import extend_canvas, fit_image, fit_mask
from ldm_jax.sampling.request import GenerationRequest
from ldm_jax.sampling.sampling_config import ImageInputs, SamplingConfig

logger = logging.getLogger(__name__)

IMAGE_GUIDANCE = 1.5  # of InstructPix2Pix, as in diffusers


@dataclasses.dataclass(frozen=True)
class RequestImages:
  """The images of a request as they were given.

  Attributes:
    image: to change, to inpaint or to upscale.
    mask: of its size, true where new content is generated.
    hint: conditioning image of a ControlNet.
  """

  image: UInt8[np.ndarray, "h w 3"] | None = None
  mask: Bool[np.ndarray, "h w"] | None = None
  hint: UInt8[np.ndarray, "h2 w2 3"] | None = None

  def size(self, loaded: LoadedModel) -> tuple[int, int] | None:
    """Height and width of what is generated, or None without an image.

    The image's own, rounded down to what the networks divide by; of an
    upscaler its result's.
    """
    shown = self.hint if self.image is None else self.image
    if shown is None:
      return None
    height, width = shown.shape[:2]
    if loaded.model.find_conditioner(LowResolution):
      stride = loaded.model.first_stage.stride
      return height * stride, width * stride
    unit = loaded.model.size_multiple
    return max(unit, height // unit * unit), max(unit, width // unit * unit)

  def inputs(
    self, config: SamplingConfig, loaded: LoadedModel, count: int
  ) -> ImageInputs:
    """The same for each of `count` images, at the size of the config.

    Raises:
      ConfigError: the mask is empty.
    """
    size = config.height, config.width
    repeat = lambda array: np.broadcast_to(array, (count, *array.shape))
    hints = None if self.hint is None else repeat(fit_image(self.hint, *size))
    if self.image is None:
      return ImageInputs(hints=hints)
    if loaded.model.find_conditioner(LowResolution):
      stride = loaded.model.first_stage.stride
      size = size[0] // stride, size[1] // stride
    if self.image.shape[:2] != size:
      old, new = (f"{h} x {w}" for h, w in (self.image.shape[:2], size))
      logger.warning("the image of %s is resized to %s", old, new)
    image = repeat(fit_image(self.image, *size))
    if self.mask is None:
      return ImageInputs(image, hints=hints)
    shown = np.where(self.mask[..., None], np.uint8(255), np.uint8(0))
    mask = fit_mask(np.repeat(shown, 3, axis=2), *size)
    if not mask.any():
      raise ConfigError(
        "the mask is black everywhere: nothing is to be generated"
      )
    return ImageInputs(image, repeat(mask), hints)


def read_images(request: GenerationRequest) -> RequestImages:
  """Reads a request's image, mask and control image.

  Raises:
    ConfigError: one is missing or damaged.
  """
  image = mask = hint = None
  if request.image is not None:
    image = read_rgb(request.image, "image")
  if request.control_image is not None:
    hint = read_rgb(request.control_image, "control_image")
  if request.outpaint is not None:
    image, mask = extend_canvas(image, *request.outpaint)
  elif request.mask is not None:
    shown = read_rgb(request.mask, "mask")
    mask = fit_mask(shown, *shown.shape[:2])
  return RequestImages(image, mask, hint)


def image_guidance(
  request: GenerationRequest, loaded: LoadedModel
) -> ClassifierFreeGuidance:
  """Guidance towards the image that is edited; scale 1 is none.

  Raises:
    ConfigError: the model edits no image.
  """
  source = loaded.model.find_conditioner(SourceImage)
  scale = request.image_guidance_scale
  names = loaded.model.unconditional_keys
  if source is None or source.input_key not in names:
    if scale is not None:
      raise ConfigError(
        "this model is not guided towards an image that it edits; leave "
        "image_guidance_scale out (--image_guidance_scale)"
      )
    return ClassifierFreeGuidance()
  scale = IMAGE_GUIDANCE if scale is None else scale
  start, stop = request.guidance_interval
  return ClassifierFreeGuidance(*map(float, (scale, 0, start, stop)))
