"""Runs a web application until a signal ends it."""

import asyncio
from collections.abc import Callable
from typing import Any

import uvicorn

from ldm_jax.errors import ConfigError
from ldm_jax.serving.open_requests import OpenRequests

IsReady = Callable[[str], None]  # is called with the address once it answers


def run_server(
  app: Any,
  host: str,
  port: int,
  *,
  drain: int = 0,
  is_ready: IsReady = lambda url: None,
) -> None:
  """Serves `app` until SIGTERM or SIGINT, then finishes open requests.

  Pages that are open and wait for nothing do not keep it from ending.

  Args:
    port: 0 takes a free one.
    drain: seconds for which open requests are finished, 0 for none.

  Raises:
    ConfigError: the address cannot be bound to.
  """
  requests = OpenRequests(app)
  config = uvicorn.Config(
    requests,
    host=host,
    port=port,
    log_level="warning",
    timeout_graceful_shutdown=drain,
  )
  try:
    _server(config, requests, is_ready).run()
  except SystemExit as error:  # uvicorn cannot bind
    raise ConfigError(
      f"cannot bind to {host}:{port}; it may be in use, try another port "
      "(--port)"
    ) from error


def _server(
  config: uvicorn.Config, requests: OpenRequests, is_ready: IsReady
) -> uvicorn.Server:
  """A server that reports its address, and that idle pages do not hold."""

  class Server(uvicorn.Server):
    async def startup(self, sockets: Any = None) -> None:
      await super().startup(sockets)
      if self.started:
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        is_ready(f"http://{shown}:{port}")

    async def shutdown(self, sockets: Any = None) -> None:
      ending = asyncio.create_task(requests.end_heartbeats())
      try:
        await super().shutdown(sockets)
      finally:
        ending.cancel()

  return Server(config)
