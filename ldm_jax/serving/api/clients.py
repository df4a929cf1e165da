"""What clients wait for: submission, disconnection, and their last tickets."""

import asyncio
import contextlib
from collections.abc import Sequence

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from ldm_jax.sampling.request import GenerationRequest
from ldm_jax.serving.ticket import Ticket
from ldm_jax.serving.worker import Worker

_POLL = 0.5  # seconds between two looks whether the client is still there


class Clients:
  """The tickets of an API's clients.

  Attributes:
    worker: that fulfils them.
  """

  def __init__(self, worker: Worker):
    self.worker = worker
    self._tickets: dict[str, list[Ticket]] = {}

  async def generate(
    self,
    http: Request,
    requests: Sequence[GenerationRequest],
    client: str | None = None,
  ) -> Ticket:
    """Submits, waits, and cancels if the client disconnects.

    Args:
      client: whose turn it is; by default the host that asks.

    Raises:
      ConfigError: see `Worker.submit`, or what failed.
      Cancelled: the client cancelled, or is gone.
    """
    host = host_of(http)
    ticket = await run_in_threadpool(
      self.worker.submit, list(requests), client or host
    )
    self._tickets.setdefault(host, []).append(ticket)
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    ticket.on_end(lambda: loop.call_soon_threadsafe(ended.set))
    try:
      while not ticket.has_ended:
        with contextlib.suppress(TimeoutError):
          await asyncio.wait_for(ended.wait(), _POLL)
        if await http.is_disconnected():
          ticket.cancel()
    finally:
      ticket.cancel()  # of no effect if it has ended
      self._forget(host, ticket)
    ticket.result()
    return ticket

  def latest(self, http: Request) -> Ticket | None:
    """The last ticket of a host that has not ended."""
    return next(reversed(self._tickets.get(host_of(http), [])), None)

  def cancel(self, http: Request) -> int:
    """Cancels the tickets of a host; returns how many."""
    tickets = self._tickets.get(host_of(http), [])
    for ticket in tickets:
      ticket.cancel()
    return len(tickets)

  def _forget(self, host: str, ticket: Ticket) -> None:
    self._tickets[host].remove(ticket)
    if not self._tickets[host]:
      del self._tickets[host]


def host_of(http: Request) -> str:
  """The address that a request comes from."""
  return http.client.host if http.client else "unknown"
