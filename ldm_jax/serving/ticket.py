"""One submission to the worker: its images, progress, and cancellation."""

import dataclasses
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from ldm_jax.errors import LdmJaxError
from ldm_jax.sampling.generation import Generation

State = Literal["waiting", "running", "done", "cancelled", "failed"]
ENDED = ("done", "cancelled", "failed")


class Cancelled(LdmJaxError):
  """The images were cancelled before they were finished."""


@dataclasses.dataclass(frozen=True)
class Progress:
  """How far a ticket is.

  Attributes:
    state: of the ticket.
    step, steps: network evaluations that are done, and all, of its images.
    images, count: images that are finished, and all.
    ahead: images of others and of the ticket that come before its next one.
    eta: seconds until it is done, estimated; None before the first step.
    preview: the last x0 as an image, uint8 [h w 3], or None.
  """

  state: State
  step: int
  steps: int
  images: int
  count: int
  ahead: int
  eta: float | None
  preview: np.ndarray | None

  @property
  def fraction(self) -> float:
    """0 to 1."""
    return self.step / max(1, self.steps)


class Ticket:
  """Images that one client asked for together.

  Attributes:
    id: unguessable.
    client: whose turn the images take.
    sources: (generation, place) of every image.
    images: uint8 [h w 3] of those that are finished, in order, else None.
    metadata: of every image, as its PNG holds it.
    has_preview: whether previews are computed, from the next step on.
    has_film: whether x0 is kept after every step.
    film: x0 of every image after each of its steps, latents [h w c]; empty
      without `has_film`.
    submitted, finished: in seconds, `time.monotonic`.
    error: why it failed, or None.
  """

  def __init__(
    self,
    client: str,
    generations: Sequence[Generation],
    *,
    has_preview: bool = False,
    has_film: bool = False,
  ):
    self.id, self.client = secrets.token_hex(16), client
    self.sources = [
      (generation, place)
      for generation in generations
      for place in range(generation.inputs.count)
    ]
    self.images: list[np.ndarray | None] = [None] * len(self.sources)
    self.has_preview, self.has_film = has_preview, has_film
    self.film: list[list[np.ndarray]] = [[] for _ in self.sources]
    self.submitted, self.finished = time.monotonic(), None
    self.error: Exception | None = None
    self.preview: np.ndarray | None = None
    self.rows_done = [0] * len(self.sources)
    self.state: State = "waiting"
    self._is_cancelled = False
    self._ended = threading.Event()
    self._listeners: list[Callable[[], None]] = []
    self._lock = threading.Lock()

  @property
  def metadata(self) -> list[Mapping[str, Any]]:
    return [generation.metadata(place) for generation, place in self.sources]

  @property
  def steps(self) -> int:
    """Network evaluations of all images."""
    return sum(
      generation.engine.network_calls(generation.config)
      for generation, _ in self.sources
    )

  @property
  def is_cancelled(self) -> bool:
    """Whether `cancel` was called."""
    return self._is_cancelled

  @property
  def has_ended(self) -> bool:
    """Whether it is done, cancelled or failed."""
    return self._ended.is_set()

  def progress(self, ahead: int, slots: int, seconds: float | int) -> Progress:
    """How far it is.

    Args:
      ahead: images that come before its next one.
      slots: images that are denoised together.
      seconds: of one row of them; 0 where it is not known.
    """
    step, steps, eta = sum(self.rows_done), self.steps, None
    if seconds:
      per_image = steps / len(self.sources)
      turns = (ahead * per_image + steps - step) / slots
      longest = max(per_image - done for done in self.rows_done)
      eta = 0.0 if self.has_ended else max(turns, longest) * seconds
    return Progress(
      state=self.state,
      step=step,
      steps=steps,
      images=sum(image is not None for image in self.images),
      count=len(self.images),
      ahead=ahead,
      eta=eta,
      preview=self.preview,
    )

  def cancel(self) -> None:
    """Frees what the ticket holds after the step that is being computed."""
    self._is_cancelled = True

  def on_end(self, listener: Callable[[], None]) -> None:
    """Calls `listener` once when the ticket has ended, from any thread."""
    with self._lock:
      if not self.has_ended:
        self._listeners.append(listener)
        return
    listener()

  def end(self, state: State, error: Exception | None = None) -> None:
    """For the worker: the ticket is done, cancelled or failed."""
    with self._lock:
      if self.has_ended:
        return
      self.state, self.error = state, error
      self.finished = time.monotonic()
      self._ended.set()
      listeners, self._listeners = self._listeners, []
    for listener in listeners:
      listener()

  def wait(self, timeout: float | int | None = None) -> list[np.ndarray]:
    """The images, uint8 [h w 3], when all are finished.

    Raises:
      Cancelled: they were cancelled.
      TimeoutError: they take longer than `timeout` seconds.
      Exception: what failed.
    """
    if not self._ended.wait(timeout):
      raise TimeoutError(f"the images take longer than {timeout:g} s")
    return self.result()

  def film_images(self, place: int) -> list[UInt8[np.ndarray, "h w 3"]]:
    """x0 of an image after each of its steps, decoded."""
    generation, _ = self.sources[place]
    engine, tile = generation.engine, generation.config.tile
    row = lambda x0: jnp.repeat(x0[None], engine.sharding.batch_shards, 0)
    decode = lambda x0: engine.codec.decode(row(x0), tile)[0]
    return [decode(jnp.asarray(x0)) for x0 in self.film[place]]

  def result(self) -> list[np.ndarray]:
    """The images of a ticket that has ended; raises as `wait` does."""
    if self.state == "cancelled":
      raise Cancelled("the images were cancelled")
    if self.error is not None:
      raise self.error
    return list(self.images)
