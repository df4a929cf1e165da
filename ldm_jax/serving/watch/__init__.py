"""A page that follows runs while they train: `build_watch_page`, `watch`."""

import dataclasses

from fastapi import FastAPI

from ldm_jax.errors import ConfigError
from ldm_jax.fields.arguments import check_request
from ldm_jax.serving.appearance import mount_page
from ldm_jax.serving.http_server import IsReady, run_server
from ldm_jax.serving.watch.watch_page import build_watch_page

__all__ = ["WatchRequest", "build_watch_page", "watch"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class WatchRequest:
  """Which runs to follow.

  Attributes:
    runs: folders of runs.
    host: address to bind to; 127.0.0.1 is this machine alone.
    port: 0 takes a free one.
    every: seconds between two looks at the files.

  Raises:
    ConfigError: a value is out of its range.
  """

  runs: tuple[str, ...]
  host: str = "127.0.0.1"
  port: int = 7861
  every: float | int = 5

  def __post_init__(self):
    check_request(self)
    if not self.runs:
      raise ConfigError("give one run or more")
    if not 0 <= self.port < 2**16:
      raise ConfigError(f"port must be 0 to 65535, got {self.port}")
    if not 0.5 <= self.every <= 3600:
      raise ConfigError(f"every must be 0.5 to 3600 s, got {self.every:g}")


def watch(request: WatchRequest, is_ready: IsReady = lambda url: None) -> None:
  """Shows runs on a page until SIGTERM or SIGINT; writes nothing to them.

  Args:
    is_ready: called with the address once it answers.

  Raises:
    ConfigError: a folder holds no run, or the address is in use.
  """
  blocks = build_watch_page(request.runs, request.every)
  app = FastAPI(docs_url=None, redoc_url=None)
  mount_page(app, blocks)
  run_server(app, request.host, request.port, drain=1, is_ready=is_ready)
