"""Runs a web application until a signal ends it."""

from collections.abc import Callable
from typing import Any

import uvicorn

from ldm_jax.errors import ConfigError

IsReady = Callable[[str], None]  # is called with the address once it answers


def run_server(
  app: Any,
  host: str,
  port: int,
  *,
  drain: int = 0,
  is_ready: IsReady = lambda url: None,
) -> None:
  """Serves `app` until SIGTERM or SIGINT.

  Args:
    port: 0 takes a free one.
    drain: seconds for which open requests are finished at the end, 0 for none.

  Raises:
    ConfigError: the address cannot be bound to.
  """
  config = uvicorn.Config(
    app,
    host=host,
    port=port,
    log_level="warning",
    timeout_graceful_shutdown=drain,
  )
  try:
    _server(config, is_ready).run()
  except SystemExit as error:  # uvicorn cannot bind
    raise ConfigError(
      f"cannot bind to {host}:{port}; it may be in use, try another port "
      "(--port)"
    ) from error


def _server(config: uvicorn.Config, is_ready: IsReady) -> uvicorn.Server:
  """A server that reports its address."""

  class Server(uvicorn.Server):
    async def startup(self, sockets: Any = None) -> None:
      await super().startup(sockets)
      if self.started:
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        is_ready(f"http://{shown}:{port}")

  return Server(config)
