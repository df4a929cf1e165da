"""A server ends with pages open, after the requests that are under way."""

import asyncio

from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

from ldm_jax.serving.open_requests import HEARTBEAT, OpenRequests


def scope(path):
  asgi = {"version": "3.0", "spec_version": "2.3"}
  return {
    "type": "http", "asgi": asgi, "http_version": "1.1", "method": "GET",
    "path": path, "raw_path": path.encode(), "query_string": b"",
    "headers": [],
  }  # fmt: skip


async def heartbeats_and_work():
  """What is sent, in order, by a heartbeat and by another request."""
  sent, beating, release = [], asyncio.Event(), asyncio.Event()

  async def heartbeat(_):
    async def endless():
      while True:
        yield "data: ALIVE\n\n"
        await asyncio.sleep(10)

    return StreamingResponse(endless(), media_type="text/event-stream")

  async def work(_):
    await release.wait()
    return PlainTextResponse("done")

  routes = [Route(HEARTBEAT + "{name}", heartbeat), Route("/work", work)]
  requests = OpenRequests(Starlette(routes=routes))

  async def never():
    await asyncio.Event().wait()

  async def ask(path):
    async def send(message):
      sent.append((path, message.get("body"), message.get("more_body", False)))
      if message.get("body"):
        beating.set()

    await requests(scope(path), never, send)

  page = asyncio.create_task(ask(HEARTBEAT + "page"))
  await beating.wait()
  other = asyncio.create_task(ask("/work"))
  ending = asyncio.create_task(requests.end_heartbeats())
  done, _ = await asyncio.wait([page, other], timeout=0.2)  # several looks
  assert not done
  release.set()
  await asyncio.wait_for(asyncio.gather(page, other), 5)
  ending.cancel()
  return sent


def test_a_heartbeat_ends_after_the_other_requests():
  sent = asyncio.run(heartbeats_and_work())
  assert sent.index(("/work", b"done", False)) < len(sent) - 1
  assert sent[-1] == (HEARTBEAT + "page", b"", False)
