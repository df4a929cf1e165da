"""Requests that are under way, and the streams of pages that only wait."""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

# A page keeps this stream open as long as it is shown; where the stream ends,
# gradio cancels what the page has asked for and forgets its session.
HEARTBEAT = "/gradio_api/heartbeat/"
_POLL = 0.05  # seconds between two looks at what is under way


class OpenRequests:
  """Counts the requests of an application; ends the heartbeats of its pages.

  uvicorn waits for all open streams when it ends, and those of pages stay open
  until their tabs are closed.
  """

  def __init__(self, app: ASGIApp):
    self._app = app
    self._count = 0  # of requests that are no heartbeats
    self._heartbeats: set[asyncio.Task] = set()

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    """Passes a request on."""
    if scope["type"] != "http":
      await self._app(scope, receive, send)
    elif HEARTBEAT in scope["path"]:
      await self._keep(scope, receive, send)
    else:
      self._count += 1
      try:
        await self._app(scope, receive, send)
      finally:
        self._count -= 1

  async def end_heartbeats(self) -> None:
    """Ends every heartbeat as soon as no other request is under way.

    Runs until it is cancelled, since requests may still arrive on connections
    that are open.
    """
    while True:
      if not self._count:
        for task in self._heartbeats:
          task.cancel()
      await asyncio.sleep(_POLL)

  async def _keep(self, scope: Scope, receive: Receive, send: Send) -> None:
    """Passes a heartbeat on in a task of its own, and completes its answer."""
    last: Message = {}

    async def watched(message: Message) -> None:
      last.clear()
      last.update(message)
      await send(message)

    task = asyncio.ensure_future(self._app(scope, receive, watched))
    self._heartbeats.add(task)
    try:
      await asyncio.wait([task])
    finally:
      self._heartbeats.discard(task)
      task.cancel()  # of no effect if it has ended
    if not task.cancelled():
      task.result()
    if last and (last.get("more_body") or "status" in last):
      await send({"type": "http.response.body", "body": b""})
