"""The web application: endpoints, errors, keys and limits."""

import base64
import binascii
import hmac
import logging
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import ldm_jax
from ldm_jax.errors import ConfigError, LdmJaxError
from ldm_jax.serving.api import a1111, metrics, openai_images
from ldm_jax.serving.api.clients import Clients
from ldm_jax.serving.limits import Draining, QueueFull
from ldm_jax.serving.ticket import Cancelled
from ldm_jax.serving.worker import Worker

logger = logging.getLogger(__name__)

OPEN = ("/healthz",)  # needs no key


def create_app(
  worker: Worker,
  model: str,
  *,
  api_key: str | None = None,
  allowed_origins: Sequence[str] = (),
) -> FastAPI:
  """The HTTP API of a worker, without its page.

  Args:
    model: its name for clients.
    api_key: that every request but /healthz must have, as a bearer token or as
      the password of basic authentication; None for none.
    allowed_origins: of pages whose scripts may read answers (CORS).
  """
  app = FastAPI(
    title="ldm_jax",
    version=ldm_jax.__version__,
    docs_url=None,  # its scripts would come from elsewhere
    redoc_url=None,
  )
  clients = Clients(worker)
  app.include_router(openai_images.routes(clients, model))
  app.include_router(a1111.routes(clients, model))
  app.include_router(metrics.routes(worker))
  app.add_exception_handler(LdmJaxError, _failed)
  app.add_exception_handler(HTTPException, _http_error)
  app.add_exception_handler(RequestValidationError, _invalid)
  app.add_exception_handler(Exception, _internal)
  app.add_middleware(LimitedBody, most=worker.limits.body)
  if api_key is not None:
    app.add_middleware(KeyRequired, key=api_key)
  if allowed_origins:
    app.add_middleware(
      CORSMiddleware,
      allow_origins=list(allowed_origins),
      allow_methods=["GET", "POST"],
      allow_headers=["Authorization", "Content-Type"],
    )
  return app


def error_body(
  path: str, status: int, message: str, kind: str
) -> dict[str, Any]:
  """An error as the clients of a path read it."""
  if path.startswith("/sdapi/"):
    return {"error": kind, "detail": message, "body": "", "errors": message}
  codes = {401: "invalid_api_key", 429: "rate_limit_exceeded"}
  names = {401: "authentication_error", 429: "rate_limit_error"}
  name = names.get(status, "invalid_request_error")
  if status >= 500:
    name = "server_error"
  error = {"message": message, "type": name, "param": None}
  return {"error": error | {"code": codes.get(status)}}


def _response(
  http: Request, status: int, message: str, kind: str
) -> JSONResponse:
  body = error_body(http.url.path, status, message, kind)
  headers = {"Retry-After": "1"} if status in (429, 503) else None
  return JSONResponse(body, status, headers)


async def _failed(http: Request, error: Exception) -> JSONResponse:
  """An exception of this package: by whose fault it is."""
  status = 422 if isinstance(error, ConfigError) else 500
  for kind, code in ((QueueFull, 429), (Draining, 503), (Cancelled, 409)):
    if isinstance(error, kind):
      status = code
  return _response(http, status, str(error), type(error).__name__)


async def _http_error(http: Request, error: Exception) -> JSONResponse:
  status, detail = error.status_code, str(error.detail)
  return _response(http, status, detail, "HTTPException")


async def _invalid(http: Request, error: Exception) -> JSONResponse:
  """A body whose fields have wrong types."""
  lines = [
    f"{'.'.join(map(str, each['loc'][1:])) or 'body'}: {each['msg']}"
    for each in error.errors()
  ]
  return _response(http, 422, "; ".join(lines), "ValidationError")


async def _internal(http: Request, error: Exception) -> JSONResponse:
  """What should not happen; its text stays in the log."""
  logger.error("a request failed", exc_info=error)
  return _response(http, 500, "internal error; see the server's log", "Error")


class TooLong(HTTPException):
  """The body of a request is above the limit."""


class LimitedBody:
  """Refuses bodies above a limit, whatever their headers say."""

  def __init__(self, app: ASGIApp, most: int):
    self._app, self._most = app, most

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    """Counts the bytes of a body as they come."""
    if scope["type"] != "http":
      await self._app(scope, receive, send)
      return
    headers = dict(scope["headers"])
    length = headers.get(b"content-length", b"0")
    text = f"the body may have {self._most} bytes at most"
    if length.isdigit() and int(length) > self._most:
      path = scope["path"]
      answer = JSONResponse(error_body(path, 413, text, "HTTPException"), 413)
      await answer(scope, receive, send)
      return
    read = 0

    async def counted() -> Message:
      nonlocal read
      message = await receive()
      read += len(message.get("body", b""))
      if read > self._most:
        raise TooLong(413, text)
      return message

    await self._app(scope, counted, send)


class KeyRequired:
  """Refuses requests without the key."""

  def __init__(self, app: ASGIApp, key: str):
    self._app, self._key = app, key.encode()

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    """Passes on what has the key, or needs none."""
    if scope["type"] == "lifespan" or scope["path"] in OPEN:
      await self._app(scope, receive, send)
      return
    given = dict(scope["headers"]).get(b"authorization", b"")
    if hmac.compare_digest(given_key(given), self._key):
      await self._app(scope, receive, send)
      return
    if scope["type"] == "websocket":
      await send({"type": "websocket.close", "code": 1008})
      return
    text = "a key is needed: Authorization: Bearer KEY, or KEY as the password"
    body = error_body(scope["path"], 401, text, "HTTPException")
    headers = {"WWW-Authenticate": 'Basic realm="ldm_jax", charset="UTF-8"'}
    await JSONResponse(body, 401, headers)(scope, receive, send)


def given_key(header: bytes) -> bytes:
  """The key of an Authorization header; empty if it has none."""
  scheme, _, value = header.partition(b" ")
  if scheme.lower() == b"bearer":
    return value.strip()
  if scheme.lower() == b"basic":
    try:
      return base64.b64decode(value.strip()).partition(b":")[2]
    except binascii.Error:
      return b""
  return b""
