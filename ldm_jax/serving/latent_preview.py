"""Latents as previews: a linear map to red, green and blue, or a decoder."""

import math
import time

import numpy as np
from jaxtyping import Array, Float, UInt8

from ldm_jax.latent_diffusion import LatentDiffusion
from ldm_jax.sampling.engine import SamplingEngine
from ldm_jax.sampling.preview_decoder import PreviewDecoder
from ldm_jax.sampling.slots import Slots
from ldm_jax.serving.slot_groups import Item
from ldm_jax.serving.ticket import Ticket

_RIDGE = 1e-3  # of the least squares, in units of one pixel's weight
_DRAWN = 16  # side of the noise that gives the first fit


class LatentPreview:
  """A least-squares fit of the first stage's decoder by one linear map.

  The mean colour of the pixels that a latent stands for is about linear in its
  channels. The fit begins with what the decoder makes of noise, and gets
  better with every finished image; it costs a product of a few numbers, where
  the decoder costs as much as a step of the sampler.
  """

  def __init__(self, engine: SamplingEngine):
    """Decodes noise once."""
    side = _DRAWN * engine.model.size_multiple
    latent_shape = engine.model.first_stage.latent_shape(side, side)
    shape = engine.sharding.batch_shards, *latent_shape
    rng = np.random.default_rng(0)
    smooth = rng.standard_normal((shape[0], 4, 4, shape[-1]), np.float32)
    latents = _enlarged(smooth, shape)
    self._square = _RIDGE * np.eye(shape[-1] + 1)
    self._product = np.zeros((shape[-1] + 1, 3))
    for latent, image in zip(
      latents,
      engine.codec.decode(engine.sharding.distribute(latents)),
      strict=True,
    ):
      self.learn(latent, image)

  def learn(
    self, latents: Float[np.ndarray, "h w c"], image: UInt8[np.ndarray, "H W 3"]
  ) -> None:
    """Adds an image and its latents to the fit."""
    height, width = latents.shape[:2]
    stride = image.shape[0] // height
    cells = image[: height * stride, : width * stride].astype(np.float64)
    colours = cells.reshape(height, stride, width, stride, 3).mean((1, 3))
    rows = _with_ones(latents)
    self._square += rows.T @ rows / len(rows)
    self._product += rows.T @ colours.reshape(-1, 3) / len(rows)

  def image(
    self, latents: Float[np.ndarray, "h w c"]
  ) -> UInt8[np.ndarray, "h w 3"]:
    """A pixel for every latent."""
    weights = np.linalg.solve(self._square, self._product)
    colours = _with_ones(latents) @ weights
    shown = np.clip(np.nan_to_num(colours), 0, 255).round().astype(np.uint8)
    return shown.reshape(*latents.shape[:2], 3)


def _with_ones(latents: np.ndarray) -> np.ndarray:
  rows = latents.reshape(-1, latents.shape[-1]).astype(np.float64)
  return np.concatenate([rows, np.ones((len(rows), 1))], axis=1)


def _enlarged(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
  """Nearest neighbour."""
  rows = np.arange(shape[1]) * x.shape[1] // shape[1]
  columns = np.arange(shape[2]) * x.shape[2] // shape[2]
  return x[:, rows][:, :, columns]


class Previews:
  """The latest x0 of tickets' images: for films, and as images, not too
  often."""

  def __init__(
    self,
    model: LatentDiffusion,
    decoder: PreviewDecoder | None = None,
    seconds: float = 0.25,
  ):
    """Decodes nothing yet.

    Args:
      decoder: None takes a linear map.
      seconds: between two previews of a ticket, at least; more where they
        would take over a fifth of the time.

    Raises:
      ConfigError: the decoder does not fit the model's latents.
    """
    if decoder is not None:
      decoder.check(model)
    self._decoder, self._seconds = decoder, seconds
    self._cost = math.inf  # seconds of the fastest preview
    self._fits: dict[int, tuple[SamplingEngine, LatentPreview]] = {}
    self._shown: dict[str, float] = {}

  def show(self, item: Item, group: Slots, slot: int) -> None:
    """Adds to the ticket's film, if it has one; and sets its preview, if it
    wants one and it is time."""
    ticket, now = item.ticket, time.monotonic()
    if ticket.has_film:
      ticket.film[item.place].append(np.asarray(group.preview(slot)[0]))
    if not ticket.has_preview or now < self._shown.get(ticket.id, 0.0):
      return
    latents, began = np.asarray(group.preview(slot)), time.monotonic()
    if self._decoder is not None:
      (ticket.preview,) = self._decoder.images(latents)
    else:
      ticket.preview = self._fit(group.engine).image(latents[0])
    ended, pause = time.monotonic(), self._seconds
    if self._cost < math.inf:  # the first preview compiles
      self._cost = min(self._cost, ended - began)
      waiting = len(self._shown.keys() | {ticket.id})
      pause = max(pause, 4 * self._cost * waiting)
    else:
      self._cost = ended - began
    self._shown[ticket.id] = ended + pause

  def _fit(self, engine: SamplingEngine) -> LatentPreview:
    """The linear map of an engine."""
    if id(engine) not in self._fits:
      self._fits[id(engine)] = engine, LatentPreview(engine)
    return self._fits[id(engine)][1]

  def learn(
    self,
    engine: SamplingEngine,
    latents: Float[Array, "1 h w c"],
    image: UInt8[np.ndarray, "H W 3"],
  ) -> None:
    """Improves an engine's previews by a finished image."""
    if id(engine) in self._fits:
      self._fits[id(engine)][1].learn(np.asarray(latents[0]), image)

  def forget(self, ticket: Ticket) -> None:
    """The ticket has ended."""
    self._shown.pop(ticket.id, None)
