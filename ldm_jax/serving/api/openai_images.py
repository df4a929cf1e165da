"""The image endpoints that OpenAI's clients use.

POST /v1/images/generations and /v1/images/edits, GET /v1/models. Beyond
OpenAI's parameters they take steps, guidance, seed, negative_prompt, sampler
and strength (`extra_body` of the Python client).
"""

import time
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, File, Form, Request, UploadFile
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.concurrency import run_in_threadpool

from ldm_jax.errors import ConfigError
from ldm_jax.sampling.metadata import png_text
from ldm_jax.sampling.request import GenerationRequest
from ldm_jax.serving.api.clients import Clients
from ldm_jax.serving.api.encoded_images import (
  encoded_bytes,
  over_white,
  read_pixels,
  to_base64,
  transparent,
)
from ldm_jax.serving.ticket import Ticket

Format = Literal["png", "jpeg", "webp"]


class Parameters(BaseModel):
  """The parameters of a generation.

  quality, style, background, moderation and input_fidelity choose between
  variants of OpenAI's models; only values that leave the choice to the server
  are taken.
  """

  model_config = ConfigDict(extra="forbid")

  prompt: str
  model: str | None = None
  n: Annotated[int, Field(ge=1)] | None = 1
  size: str | None = "auto"
  response_format: Literal["b64_json"] | None = "b64_json"
  output_format: Format | None = "png"
  output_compression: Annotated[int, Field(ge=0, le=100)] | None = 95
  user: str | None = None
  stream: Literal[False] | None = None
  quality: Literal["auto", "standard"] | None = None
  style: None = None
  background: Literal["auto", "opaque"] | None = None
  moderation: Literal["auto"] | None = None
  input_fidelity: None = None
  partial_images: Literal[0] | None = None
  steps: int | None = None
  guidance: float | None = None
  seed: int | None = None
  negative_prompt: str | None = None
  sampler: str | None = None
  strength: float | None = None

  def request(self, **more: Any) -> GenerationRequest:
    """Raises ConfigError if it cannot be fulfilled by any model."""
    names = "steps", "guidance", "negative_prompt", "sampler", "strength"
    given = {name: getattr(self, name) for name in names}
    fields = {k: v for k, v in given.items() if v is not None}
    height, width = parse_size(self.size)
    seed = -1 if self.seed is None else self.seed
    request = GenerationRequest(
      prompt=self.prompt,
      num=self.n or 1,
      seed=seed,
      height=height,
      width=width,
      **fields,
      **more,
    )
    return request


def parse_size(text: str | None) -> tuple[int | None, int | None]:
  """Height and width of "WIDTHxHEIGHT"; None for "auto".

  Raises:
    ConfigError: it is neither.
  """
  if text in (None, "auto"):
    return None, None
  width, _, height = text.partition("x")
  if not (width.isascii() and width.isdigit() and height.isdigit()):
    raise ConfigError(f"size must be WIDTHxHEIGHT or auto, got {text!r}")
  return int(height), int(width)


def routes(clients: Clients, model: str) -> APIRouter:
  """The router of these endpoints.

  Args:
    model: name of the one model that is served.
  """
  router = APIRouter(prefix="/v1", tags=["OpenAI"])
  card = {"id": model, "object": "model", "created": 0, "owned_by": "ldm_jax"}

  def check_model(name: str | None) -> None:
    if name not in (None, "", model):
      raise ConfigError(f"this server has the model {model!r} alone")

  @router.get("/models")
  async def models() -> dict[str, Any]:
    return {"object": "list", "data": [card]}

  @router.get("/models/{name:path}")
  async def one_model(name: str) -> dict[str, Any]:
    check_model(name)
    return card

  @router.post("/images/generations")
  async def generations(body: Parameters, http: Request) -> dict[str, Any]:
    check_model(body.model)
    if body.strength is not None:
      raise ConfigError("strength is of /v1/images/edits")
    ticket = await clients.generate(http, [body.request()], body.user)
    return await run_in_threadpool(answer, ticket, body)

  @router.post("/images/edits")
  async def edits(
    http: Request,
    image: Annotated[UploadFile, File()],
    mask: Annotated[UploadFile | None, File()] = None,
    prompt: Annotated[str, Form()] = "",
  ) -> dict[str, Any]:
    """Changes an image; the other fields of the form are `Parameters`."""
    form = await http.form()
    fields = {k: v for k, v in form.items() if isinstance(v, str)}
    body = parse_form(fields | {"prompt": prompt})
    check_model(body.model)
    files = await image.read(), None if mask is None else await mask.read()
    more = await run_in_threadpool(edited, *files)
    ticket = await clients.generate(http, [body.request(**more)], body.user)
    return await run_in_threadpool(answer, ticket, body)

  return router


def edited(image: bytes, mask: bytes | None) -> dict[str, Any]:
  """The request's fields of an image file, and of a mask's.

  Raises:
    ConfigError: one is damaged, or nothing is transparent in the mask.
  """
  pixels = read_pixels(image, "image")
  hidden = transparent(pixels if mask is None else read_pixels(mask, "mask"))
  found: dict[str, Any] = {"image": over_white(pixels)}
  if hidden.any():
    return found | {"mask": np.where(hidden, np.uint8(255), np.uint8(0))}
  if mask is not None:
    raise ConfigError("the mask is opaque: nothing is to be edited")
  return found


def parse_form(fields: dict[str, str]) -> Parameters:
  """The parameters of a form, whose values are text.

  Raises:
    ConfigError: one is not what it should be.
  """
  try:
    return Parameters.model_validate(fields)
  except ValidationError as error:
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"]))
    raise ConfigError(f"{place}: {first['msg']}") from error


def answer(ticket: Ticket, body: Parameters) -> dict[str, Any]:
  """The images of a ticket that is done."""
  kind, quality = body.output_format or "png", body.output_compression
  quality = 95 if quality is None else quality
  data = [
    {"b64_json": to_base64(encoded_bytes(image, png_text(text), kind, quality))}
    for image, text in zip(ticket.images, ticket.metadata, strict=True)
  ]
  return {"created": int(time.time()), "output_format": kind, "data": data}
