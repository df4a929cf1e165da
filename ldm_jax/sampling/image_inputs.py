"""The pictures that sample.py's flags name, read and cut to size."""

import argparse
import logging

import numpy as np

from ldm_jax.data.images import read_image
from ldm_jax.errors import ConfigError, ImageError
from ldm_jax.loaded_model import LoadedModel
from ldm_jax.nn.conditioners.spatial import LowResolution
from ldm_jax.sampling import ImageInputs, SamplingConfig
from ldm_jax.sampling.resize import extend_canvas, fit_image, fit_mask

logger = logging.getLogger(__name__)


class ImageFlags:
  """The files that the flags name, read."""

  def __init__(self, flags: argparse.Namespace):
    """Reads them.

    Raises:
      ConfigError: one is missing or damaged, or they do not go together.
    """
    self.image = self.mask = self.hint = None
    if (flags.mask or flags.outpaint) and not flags.image:
      raise ConfigError("--mask and --outpaint need --image")
    if flags.mask and flags.outpaint:
      raise ConfigError("--outpaint makes its own mask; leave --mask out")
    if flags.invert and not (flags.image and flags.output == "latent"):
      raise ConfigError("--invert needs --image and --output latent")
    if flags.control_image and not flags.controlnet:
      raise ConfigError("--control_image is for --controlnet; give it too")
    if flags.strength is not None and not flags.image:
      raise ConfigError("--strength is of --image; give one")
    if flags.image:
      self.image = _picture("--image", flags.image)
    if flags.control_image:
      self.hint = _picture("--control_image", flags.control_image)
    if flags.outpaint:
      self.image, self.mask = extend_canvas(self.image, *_sides(flags.outpaint))
    elif flags.mask:
      mask = _picture("--mask", flags.mask)
      self.mask = fit_mask(mask, *mask.shape[:2])

  def size(self, opened: LoadedModel) -> tuple[int, int] | None:
    """Of the images to draw: the picture's, or what the model enlarges it to.

    Rounded down to what the networks divide by.
    """
    shown = self.hint if self.image is None else self.image
    if shown is None:
      return None
    height, width = shown.shape[:2]
    if opened.model.find_conditioner(LowResolution):
      stride = opened.model.first_stage.stride
      return height * stride, width * stride
    unit = opened.model.size_multiple
    return max(unit, height // unit * unit), max(unit, width // unit * unit)

  def given(
    self, settings: SamplingConfig, opened: LoadedModel, count: int
  ) -> ImageInputs:
    """The same for every image, at the size of the order."""
    size = settings.height, settings.width
    again = lambda array: np.broadcast_to(array, (count, *array.shape))
    hints = None if self.hint is None else again(fit_image(self.hint, *size))
    if self.image is None:
      return ImageInputs(hints=hints)
    if opened.model.find_conditioner(LowResolution):
      stride = opened.model.first_stage.stride
      size = size[0] // stride, size[1] // stride
    if self.image.shape[:2] != size:
      told = [f"{h} x {w}" for h, w in (self.image.shape[:2], size)]
      logger.warning(f"the picture of {told[0]} is resized to {told[1]}")
    image = again(fit_image(self.image, *size))
    if self.mask is None:
      return ImageInputs(image, hints=hints)
    shown = np.where(self.mask[..., None], np.uint8(255), np.uint8(0))
    mask = fit_mask(np.repeat(shown, 3, axis=2), *size)
    if not mask.any():
      raise ConfigError("the mask is black everywhere: nothing is to be drawn")
    return ImageInputs(image, again(mask), hints)


def _picture(flag: str, path: str) -> np.ndarray:
  try:
    return read_image(path)
  except ImageError as error:
    raise ConfigError(f"{flag} {error}") from error


def _sides(text: str) -> list[int]:
  try:
    sides = [int(word) for word in text.split(",")]
  except ValueError:
    sides = []
  if len(sides) != 4 or min(sides) < 0 or not any(sides):
    raise ConfigError(
      "--outpaint takes four numbers of pixels, left, top, right and bottom, "
      f"such as 0,0,64,0; got {text!r}"
    )
  return sides
