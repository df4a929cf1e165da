"""What a server accepts."""

import dataclasses

from ldm_jax.errors import ConfigError
from ldm_jax.sampling.request import GenerationRequest


class QueueFull(ConfigError):
  """As many images wait as may."""


class Draining(ConfigError):
  """The server is about to end and takes nothing new."""


@dataclasses.dataclass(frozen=True)
class Limits:
  """Limits of one server; a client's request above them is refused.

  Attributes:
    queue: images that wait, of all clients.
    images: of one submission.
    steps: of the sampler.
    pixels: of one image.
    body: bytes of an HTTP request.
  """

  queue: int = 256
  images: int = 16
  steps: int = 150
  pixels: int = 2048 * 2048
  body: int = 64 * 2**20

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if value < 1:
        raise ConfigError(f"{field.name} must be 1 or more, got {value}")

  def check(self, request: GenerationRequest) -> None:
    """Raises ConfigError for a request that is above a limit."""
    if request.steps > self.steps:
      raise ConfigError(
        f"steps must be at most {self.steps} on this server, got "
        f"{request.steps}"
      )
    height, width = request.height or 1, request.width or 1
    if height * width > self.pixels:
      raise ConfigError(
        f"images of {height} x {width}: this server makes at most "
        f"{self.pixels} pixels"
      )

  def check_queue(self, waiting: int, more: int) -> None:
    """Raises QueueFull if no more images may wait with those that do."""
    if waiting + more > self.queue:
      raise QueueFull(
        f"{waiting} images are waiting, and at most {self.queue} may; try "
        "again later"
      )

  def check_images(self, count: int) -> None:
    """Raises ConfigError for more images than one submission may have."""
    if count > self.images:
      raise ConfigError(
        f"at most {self.images} images at a time on this server, got {count}"
      )


def image_count(request: GenerationRequest) -> int:
  """How many images a request asks for."""
  if request.interpolate is not None:
    return request.interpolate if request.index is None else 1
  return request.num * max(1, len(request.prompts))
