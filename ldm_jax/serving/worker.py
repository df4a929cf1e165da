"""One thread that owns the model: continuous batching of many clients."""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import numpy as np

from ldm_jax.errors import LdmJaxError, config_errors
from ldm_jax.sampling.generation import Generation
from ldm_jax.sampling.pipeline import Pipeline
from ldm_jax.sampling.preview_decoder import PreviewDecoder
from ldm_jax.sampling.request import GenerationRequest
from ldm_jax.sampling.slots import slot_job
from ldm_jax.serving.decodings import Decodings
from ldm_jax.serving.fair_queue import FairQueue
from ldm_jax.serving.latent_preview import Previews
from ldm_jax.serving.limits import Draining, Limits, image_count
from ldm_jax.serving.slot_groups import Item, SlotGroups
from ldm_jax.serving.statistics import Statistics
from ldm_jax.serving.ticket import Cancelled, Progress, Ticket

logger = logging.getLogger(__name__)


class Worker:
  """A queue of images in front of one pipeline.

  Every image is denoised in a slot of a batch (see `Slots`), with a sampler,
  steps, guidance and seed of its own. It enters when a slot is free, at the
  turn of its client, and leaves when it is done; so a client never waits for
  another's long request. An image is bit for bit what it is alone.

  What cannot share a batch (inversion, classifier guidance) runs between them.

  Attributes:
    pipeline: whose requests are fulfilled.
    limits: of what is accepted.
    statistics: of what was done.
  """

  def __init__(
    self,
    pipeline: Pipeline,
    slots: int = 4,
    limits: Limits = Limits(),
    preview_decoder: PreviewDecoder | None = None,
  ):
    """Starts nothing yet.

    Args:
      slots: images that are denoised together.
      preview_decoder: of previews; None takes a linear map of the latents.

    Raises:
      ConfigError: the decoder does not fit the model's latents.
    """
    self.pipeline, self.limits, self.statistics = pipeline, limits, Statistics()
    self._count = slots
    self._queue: FairQueue[Item] = FairQueue()
    self._change = threading.Condition()
    self._preparing = threading.Lock()
    self._previews = Previews(pipeline.loaded.model, preview_decoder)
    self._groups, self._decodings = SlotGroups(slots), Decodings()
    self._is_draining = self._is_stopping = False
    self._thread = threading.Thread(
      target=self._run, name="worker", daemon=True
    )

  def start(self) -> None:
    """Starts the thread."""
    self._thread.start()

  def stop(self, *, drain: bool = True, timeout: float | None = None) -> None:
    """Ends the thread.

    Args:
      drain: finish what was submitted first; else cancel it.
      timeout: seconds of that.
    """
    with self._change:
      self._is_draining, self._is_stopping = True, not drain
      self._change.notify_all()
    self._thread.join(timeout)
    with self._change:
      self._is_stopping = True
      self._change.notify_all()
    self._thread.join()

  @property
  def is_draining(self) -> bool:
    """Whether nothing new is taken."""
    return self._is_draining

  @property
  def waiting(self) -> int:
    """Images that have no slot yet."""
    return len(self._queue) + self._groups.held

  @property
  def running(self) -> int:
    """Images in slots, or being decoded."""
    return self._groups.placed + len(self._decodings)

  def submit(
    self,
    requests: GenerationRequest | Sequence[GenerationRequest],
    client: str = "",
    *,
    has_preview: bool = False,
    has_film: bool = False,
  ) -> Ticket:
    """Checks requests and puts their images in the queue; see `Ticket`.

    Raises:
      ConfigError: one cannot be fulfilled, by this model or on this server.
      QueueFull: too many images wait.
      Draining: the server is about to end.
    """
    if isinstance(requests, GenerationRequest):
      requests = [requests]
    self.limits.check_images(sum(map(image_count, requests)))
    for request in requests:
      self.limits.check(request)
    with self._preparing:  # a pipeline is no use to two threads at once
      generations = [self.pipeline.prepare(each) for each in requests]
    for generation in generations:
      self.limits.check(generation.request)
    options = {"has_preview": has_preview, "has_film": has_film}
    ticket = Ticket(client, generations, **options)
    count = len(ticket.sources)
    with self._change:
      if self._is_draining:
        raise Draining("the server is ending; try again later")
      self.limits.check_queue(self.waiting, count)
      for place in range(count):
        self._queue.push(client, Item(ticket, place))
      self._change.notify_all()
    return ticket

  def progress(self, ticket: Ticket) -> Progress:
    """How far a ticket is."""
    ahead = 0
    with self._change:
      if ticket.state == "waiting":
        ahead = self._queue.before(lambda item: item.ticket is ticket)
    return ticket.progress(ahead, self._count, self.statistics.row_seconds)

  def _run(self) -> None:
    while True:
      with self._change:
        while not (self.waiting or self.running or self._is_draining):
          self._change.wait()
        is_idle = not (self.waiting or self.running)
        if self._is_stopping or (self._is_draining and is_idle):
          break
      self._end_cancelled()
      self._fill()
      self._advance()
    self._end_all()

  @property
  def _begun(self) -> set[Ticket]:
    """Tickets with images that have left the queue."""
    return self._groups.tickets | self._decodings.tickets

  def _end_cancelled(self) -> None:
    found = {ticket for ticket in self._begun if ticket.is_cancelled}
    with self._change:
      self._queue.remove(
        lambda item: item.ticket.is_cancelled and not found.add(item.ticket)
      )
    for ticket in found:
      self._end(ticket, "cancelled")

  def _end_all(self) -> None:
    with self._change:
      queued = {self._queue.pop().ticket for _ in range(len(self._queue))}
    for ticket in queued | self._begun:
      self._end(ticket, "cancelled")

  def _end(
    self, ticket: Ticket, state: Any, error: Exception | None = None
  ) -> None:
    """Ends a ticket and frees all that it holds."""
    if ticket.has_ended:
      return
    with self._change:
      self._queue.remove(lambda item: item.ticket is ticket)
    self._groups.remove(ticket)
    self._previews.forget(ticket)
    ticket.end(state, error)
    self.statistics.ended(ticket)

  def _fill(self) -> None:
    """Places as many images as there are free slots for."""
    self._groups.place_held()
    while self._groups.has_space:
      with self._change:
        if not len(self._queue):
          return
        item = self._queue.pop()
      with self._failing([item.ticket]):
        self._begin(item)

  def _begin(self, item: Item) -> None:
    """Encodes an image's conditions and places it."""
    generation, place = item.ticket.sources[item.place]
    item.ticket.state = "running"
    if generation.request.invert or generation.inputs.labels is not None:
      self._run_alone(item, generation)
      return
    with self._preparing:
      job = slot_job(generation, place)
    self._groups.place(item, job)

  def _advance(self) -> None:
    """One row of every image that is in a slot."""
    if not self._groups.placed:
      self._collect()
    for signature, group in self._groups.active:
      tickets = [item.ticket for _, item in self._groups.items(signature)]
      with self._failing(tickets, signature):
        began, count = time.monotonic(), group.occupied
        finished = group.advance()
        self._collect()  # while the devices compute
        group.wait()
        self.statistics.advanced(count, time.monotonic() - began)
        for slot, item in self._groups.items(signature):
          item.ticket.rows_done[item.place] = group.done[slot]
          self._previews.show(item, group, slot)
          if slot in finished:
            with self._failing([item.ticket]):
              self._decodings.begin(item, group.jobs[slot], group.latents(slot))
            self._groups.free(signature, slot)

  def _collect(self) -> None:
    """Waits for the images that are being decoded."""
    for decoded in self._decodings.take():
      ticket = decoded.item.ticket
      if ticket.has_ended:
        continue
      with self._failing([ticket]):
        image = decoded.wait()
        if decoded.decoding is not None:
          self._previews.learn(decoded.job.engine, decoded.latents, image)
        self._add(decoded.item, image)

  def _add(self, item: Item, image: np.ndarray) -> None:
    """A finished image; the ticket ends with its last."""
    item.ticket.images[item.place] = image
    self.statistics.finished_image()
    if all(each is not None for each in item.ticket.images):
      self._end(item.ticket, "done")

  def _run_alone(self, item: Item, generation: Generation) -> None:
    """An image that cannot share a batch, with its request's others."""
    ticket = item.ticket

    def advance(done: int, total: int, preview: Any) -> None:
      if ticket.is_cancelled:
        raise Cancelled("the images were cancelled")
      ticket.rows_done[item.place] = done

    callback: Callable | None = None if generation.request.invert else advance
    first = item.place
    with self._preparing:
      for batch in generation.batches(callback):
        for image in batch.arrays:
          self._add(Item(ticket, first), image)
          first += 1
    with self._change:
      self._queue.remove(lambda i: i.ticket is ticket and i.place < first)

  @contextlib.contextmanager
  def _failing(
    self, tickets: Sequence[Ticket], signature: Hashable = None
  ) -> Iterator[None]:
    """Ends tickets with what the block raises; the others go on.

    Args:
      signature: whose slots cannot be used any more then.
    """
    try:
      with config_errors():
        yield
      return
    except LdmJaxError as each:
      is_cancelled = isinstance(each, Cancelled)
      state, error = ("cancelled", None) if is_cancelled else ("failed", each)
    except Exception as each:
      logger.exception("an image failed")
      state, error = "failed", each
    if signature is not None:
      self._groups.drop(signature)
    for ticket in tickets:
      self._end(ticket, state, error)
