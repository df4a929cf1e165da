"""Counts of what a server did, for its metrics."""

import collections
import dataclasses
import threading

from ldm_jax.serving.ticket import Ticket

LATENCIES = 1000  # of the last tickets, for quantiles


@dataclasses.dataclass
class Statistics:
  """Counts since the start.

  Attributes:
    tickets: that ended, by state.
    images: that were finished.
    rows: network evaluations of one image.
    row_seconds: moving average of the time of one row of all slots.
    latencies: seconds from submission to end of the last tickets.
  """

  tickets: collections.Counter = dataclasses.field(
    default_factory=collections.Counter
  )
  images: int = 0
  rows: int = 0
  row_seconds: float = 0.0
  latencies: collections.deque = dataclasses.field(
    default_factory=lambda: collections.deque(maxlen=LATENCIES)
  )
  _lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)

  def ended(self, ticket: Ticket) -> None:
    """Counts a ticket that has ended."""
    with self._lock:
      self.tickets[ticket.state] += 1
      if ticket.state == "done":
        self.latencies.append(ticket.finished - ticket.submitted)

  def advanced(self, images: int, seconds: float | int) -> None:
    """Counts one row of `images` images."""
    with self._lock:
      self.rows += images
      old = self.row_seconds
      self.row_seconds = seconds if not old else 0.9 * old + 0.1 * seconds

  def finished_image(self) -> None:
    """Counts an image."""
    with self._lock:
      self.images += 1
