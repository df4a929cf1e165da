"""Submits requests for a session and reports how far they are."""

import asyncio
import base64
import html
import io
from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ldm_jax.sampling.request import GenerationRequest
from ldm_jax.serving.page.sessions import Session
from ldm_jax.serving.ticket import Progress, Ticket
from ldm_jax.serving.worker import Worker

POLL = 0.25  # seconds between two looks at a ticket


class Event(NamedTuple):
  """What happened to requests that are under way.

  Attributes:
    progress: of the ticket that is under way.
    ended: the tickets that have ended, with images.
    first, count: images that ended before it, and all of the requests.
  """

  progress: Progress | None
  ended: Sequence[Ticket]
  first: int
  count: int


async def follow(
  worker: Worker,
  session: Session,
  tab: str,
  client: str,
  requests: Sequence[GenerationRequest],
  has_film: bool = False,
) -> AsyncIterator[Event]:
  """Submits requests, as many images at a time as the server takes.

  What it submits is cancelled where it is closed before its end.

  Args:
    tab: by whose name `Session.cancel` finds the ticket.
    client: whose turn the images take.

  Raises:
    ConfigError: see `Worker.submit`.
    Cancelled: the ticket was cancelled.
    Exception: what failed.
  """
  ended: list[Ticket] = []
  session.cancelled.discard(tab)
  total, first = sum(map(_images, requests)), 0
  for part in _parts(requests, worker.limits.images):
    ticket = await asyncio.to_thread(
      worker.submit, part, client, has_preview=True, has_film=has_film
    )
    session.tickets[tab] = ticket
    if tab in session.cancelled:
      ticket.cancel()
    try:
      while not ticket.has_ended:
        yield Event(worker.progress(ticket), ended, first, total)
        await asyncio.sleep(POLL)
      ticket.result()
    finally:
      ticket.cancel()  # of no effect if it has ended
      session.tickets.pop(tab, None)
    ended.append(ticket)
    first += len(ticket.sources)
  yield Event(None, ended, first, total)


def progress_html(event: Event) -> str:
  """A bar, a line of text and the preview; nothing when all is done."""
  progress = event.progress
  if progress is None:
    return ""
  fraction = (event.first + progress.fraction * progress.count) / event.count
  text = html.escape(progress_text(event))
  return (
    '<div class="progress" role="status">'
    f'<progress value="{fraction:.3f}" max="1">{fraction:.0%}</progress>'
    f"<p>{text}</p>{_preview(progress.preview)}</div>"
  )


def progress_text(event: Event) -> str:
  """How far a ticket is, in words."""
  progress = event.progress
  if progress.state == "waiting" and progress.ahead:
    return f"Waiting: {progress.ahead} images are ahead"
  parts = [f"Step {progress.step} of {progress.steps}"]
  if event.count > 1:
    done = event.first + progress.images
    parts.append(f"{done} of {event.count} images are finished")
  if progress.step == 0:
    parts.append("the first image of a size takes longer")
  elif progress.eta is not None:
    parts.append(f"{progress.eta:.0f} s left")
  return ", ".join(parts)


def _preview(image: UInt8[np.ndarray, "h w 3"] | None) -> str:
  if image is None:
    return ""
  file = io.BytesIO()
  Image.fromarray(image).save(file, "PNG")
  data = base64.b64encode(file.getvalue()).decode()
  return f'<img alt="preview" src="data:image/png;base64,{data}">'


def _images(request: GenerationRequest) -> int:
  """How many images a request makes."""
  if request.interpolate is not None:
    return 1 if request.index is not None else request.interpolate
  return max(1, len(request.prompts)) * request.num


def _parts(
  requests: Sequence[GenerationRequest], most: int
) -> list[list[GenerationRequest]]:
  """Requests in turn, of at most `most` images each; one at least."""
  parts: list[list[GenerationRequest]] = []
  for request in requests:
    size = sum(map(_images, parts[-1])) if parts else most
    if size + _images(request) > most:
      parts.append([])
    parts[-1].append(request)
  return parts
