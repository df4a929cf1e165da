"""The right side of a tab: generate, cancel, progress and results."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, NamedTuple

import gradio as gr

from ldm_jax.errors import LdmJaxError, config_errors
from ldm_jax.sampling.request import GenerationRequest
from ldm_jax.serving.page.follow_tickets import follow, progress_html
from ldm_jax.serving.page.model_inputs import ModelInputs
from ldm_jax.serving.page.sessions import Session, Sessions
from ldm_jax.serving.ticket import Cancelled, Ticket
from ldm_jax.serving.worker import Worker

logger = logging.getLogger(__name__)

# Values of the tab's components -> requests. Raises ConfigError.
Build = Callable[..., GenerationRequest | Sequence[GenerationRequest]]
# Finished tickets -> the values of the tab's outputs.
Show = Callable[[Session, Sequence[Ticket]], list[Any]]


class PageContext(NamedTuple):
  """What every tab is built from.

  Attributes:
    worker: that fulfils requests.
    inputs: what its model reads.
    sessions: of the browsers.
    controlnets: (name, folder) of those that the server offers.
  """

  worker: Worker
  inputs: ModelInputs
  sessions: Sessions
  controlnets: Sequence[tuple[str, str]]


class RunPanel:
  """Buttons, progress and a gallery; `connect` gives them their meaning.

  Attributes:
    generate, cancel: the buttons.
    results: the gallery, where it is not replaced by another output.
  """

  def __init__(self, context: PageContext, tab: str, verb: str = "Generate"):
    """Adds the components to the column that is open.

    Args:
      tab: unique name; "-results" and "-generate" end elements' ids.
    """
    self._context, self._tab = context, tab
    with gr.Row():
      self.generate = gr.Button(
        verb, variant="primary", elem_id=f"{tab}-generate", min_width=120
      )
      self.cancel = gr.Button(
        "Cancel", variant="stop", elem_id=f"{tab}-cancel", min_width=120
      )
    self.progress = gr.HTML(elem_id=f"{tab}-progress")

  def gallery(self) -> gr.Gallery:
    """A gallery of results in the column that is open."""
    return gr.Gallery(
      label="Results",
      columns=2,
      object_fit="contain",
      height="auto",
      interactive=False,
      elem_id=f"{self._tab}-results",
      buttons=["download", "fullscreen"],
    )

  def connect(
    self,
    build: Build,
    components: Sequence[Any],
    outputs: Sequence[Any],
    show: Show | None = None,
    has_film: bool = False,
  ) -> Any:
    """Generates what `build` makes of the components' values.

    Args:
      show: values of `outputs` then; by default the images' paths.

    Returns:
      The event, to which more can be attached.
    """
    show = show or (lambda session, tickets: [save_images(session, tickets)])
    context, tab = self._context, self._tab
    nothing = [gr.skip()] * len(outputs)

    async def run(http: gr.Request, *values: Any) -> AsyncIterator[list[Any]]:
      """Yields the progress and the values of `outputs`."""
      session = context.sessions.get(http.session_hash)
      try:
        with config_errors():
          requests = build(*values)
        if isinstance(requests, GenerationRequest):
          requests = [requests]
        events = follow(
          *(context.worker, session, tab, http.session_hash, requests),
          has_film=has_film,
        )
        async for event in events:
          shown = nothing
          if event.progress is None:
            shown = await asyncio.to_thread(show, session, event.ended)
          yield [progress_html(event), *shown]
      except Cancelled:
        yield ["<p role='status'>Cancelled</p>", *nothing]
      except LdmJaxError as error:
        yield ["", *nothing]
        raise one_line(error) from error

    def stop(http: gr.Request) -> None:
      context.sessions.get(http.session_hash).cancel(tab)

    event = self.generate.click(
      run,
      list(components),
      [self.progress, *outputs],
      show_progress="hidden",
      concurrency_limit=None,
      trigger_mode="once",
      api_visibility="private",
    )
    self.cancel.click(stop, queue=False, api_visibility="private")
    return event


def one_line(error: Exception) -> gr.Error:
  """An error of the library as the page shows it."""
  return gr.Error(
    str(error), duration=None, title="Not possible", print_exception=False
  )


def save_images(session: Session, tickets: Sequence[Ticket]) -> list[str]:
  """Puts finished images into the session; returns their paths."""
  return [
    session.add(image, metadata)
    for ticket in tickets
    for image, metadata in zip(ticket.images, ticket.metadata, strict=True)
  ]
