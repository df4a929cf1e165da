"""The endpoints that clients of A1111's web UI use, /sdapi/v1/..."""

import contextlib
import io
import json
import time
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Body, Request
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from ldm_jax.data.open_images import open_image
from ldm_jax.diffusion.samplers import SAMPLERS
from ldm_jax.errors import ConfigError, ImageError
from ldm_jax.files.strict_json import parse_object
from ldm_jax.sampling.metadata import A1111_SAMPLERS, A1111_SCHEDULES, png_text
from ldm_jax.serving.api.a1111_fields import Fields, ImageFields, TextFields
from ldm_jax.serving.api.clients import Clients
from ldm_jax.serving.api.encoded_images import (
  png_bytes,
  read_base64,
  to_base64,
)
from ldm_jax.serving.ticket import Ticket


class Encoded(BaseModel):
  """A PNG in base64."""

  image: str


def routes(clients: Clients, model: str) -> APIRouter:
  """The router of these endpoints.

  Args:
    model: name of the one model that is served.
  """
  router = APIRouter(prefix="/sdapi/v1", tags=["A1111"])
  limits = clients.worker.limits

  @router.post("/txt2img")
  async def txt2img(body: TextFields, http: Request) -> dict[str, Any]:
    body.check()
    limits.check_images(body.images)
    ticket = await clients.generate(http, body.requests(model))
    return await run_in_threadpool(answer, ticket, body, [])

  @router.post("/img2img")
  async def img2img(body: ImageFields, http: Request) -> dict[str, Any]:
    body.check()
    limits.check_images(body.images)
    given = await run_in_threadpool(body.given_images)
    ticket = await clients.generate(http, body.requests(model, **given))
    return await run_in_threadpool(answer, ticket, body, body.warnings())

  @router.get("/progress")
  async def progress(
    http: Request, skip_current_image: bool = False
  ) -> dict[str, Any]:
    return progress_of(clients, http, has_image=not skip_current_image)

  @router.post("/interrupt")
  async def interrupt(http: Request) -> dict[str, Any]:
    clients.cancel(http)
    return {}

  @router.post("/skip")
  async def skip(http: Request) -> dict[str, Any]:
    clients.cancel(http)
    return {}

  @router.post("/png-info")
  def png_info(body: Encoded) -> dict[str, Any]:
    return info_of(read_base64(body.image, "image"))

  _lists(router, model)
  return router


def _lists(router: APIRouter, model: str) -> None:
  """What there is to choose from."""

  @router.get("/samplers")
  async def samplers() -> list[dict[str, Any]]:
    return [
      {"name": A1111_SAMPLERS.get(name, name), "aliases": [name], "options": {}}
      for name in SAMPLERS
    ]

  @router.get("/schedulers")
  async def schedulers() -> list[dict[str, Any]]:
    names = {"automatic": "Automatic"} | A1111_SCHEDULES
    return [
      {"name": name, "label": label, "aliases": None}
      for name, label in names.items()
    ]

  @router.get("/sd-models")
  async def sd_models() -> list[dict[str, Any]]:
    empty = dict.fromkeys(("hash", "sha256", "config"))
    return [{"title": model, "model_name": model, "filename": model} | empty]

  @router.get("/options")
  async def options() -> dict[str, Any]:
    return {"sd_model_checkpoint": model, "samples_format": "png"}

  @router.post("/options")
  async def set_options(settings: dict[str, Any] = Body()) -> dict[str, Any]:
    Fields(override_settings=settings).requests(model)
    if "CLIP_stop_at_last_layers" in settings:
      raise ConfigError(
        "settings are not kept between requests; send override_settings"
      )
    return {}

  for path in (
    "loras",
    "upscalers",
    "sd-vae",
    "hypernetworks",
    "prompt-styles",
  ):
    router.get(f"/{path}")(_nothing)

  @router.get("/scripts")
  async def scripts() -> dict[str, list[str]]:
    return {"txt2img": [], "img2img": []}


async def _nothing() -> list[str]:
  """There are none."""
  return []


def answer(
  ticket: Ticket, body: Fields, warnings: Sequence[str]
) -> dict[str, Any]:
  """The images of a ticket that is done, and their settings."""
  texts = [png_text(metadata) for metadata in ticket.metadata]
  images = [
    to_base64(png_bytes(image, text))
    for image, text in zip(ticket.images, texts, strict=True)
  ]
  metadata = ticket.metadata
  first = metadata[0]
  seeds = [each["seed"] for each in metadata]
  info = {
    "prompt": body.prompt,
    "all_prompts": [body.prompt] * len(images),
    "negative_prompt": body.negative_prompt,
    "all_negative_prompts": [body.negative_prompt] * len(images),
    "seed": seeds[0],
    "all_seeds": seeds,
    "width": first["width"],
    "height": first["height"],
    "sampler_name": A1111_SAMPLERS.get(first["sampler"], first["sampler"]),
    "cfg_scale": first["guidance"],
    "steps": first["steps"],
    "batch_size": body.batch_size,
    "denoising_strength": first["strength"],
    "clip_skip": first["clip_skip"] or 1,
    "index_of_first_image": 0,
    "infotexts": [text["parameters"] for text in texts],
    "version": f"ldm_jax {first['ldm_jax']}",
    "warnings": list(warnings),
  }
  parameters = body.model_dump()
  if isinstance(body, ImageFields) and not body.include_init_images:
    parameters |= {"init_images": None, "mask": None}
  sent = images if body.send_images else []
  return {"images": sent, "parameters": parameters, "info": json.dumps(info)}


def progress_of(
  clients: Clients, http: Request, *, has_image: bool
) -> dict[str, Any]:
  """How far the host's last request is."""
  ticket = clients.latest(http)
  if ticket is None:
    state = {"sampling_step": 0, "sampling_steps": 0, "job_count": 0}
    return {
      "progress": 0.0,
      "eta_relative": 0.0,
      "state": state | {"skipped": False, "interrupted": False, "job": ""},
      "current_image": None,
      "textinfo": None,
    }
  if has_image:
    ticket.has_preview = True  # none is computed that nobody asks for
  found = clients.worker.progress(ticket)
  per_image = found.steps // found.count
  image = None
  if has_image and found.preview is not None:
    image = to_base64(png_bytes(found.preview))
  return {
    "progress": found.fraction,
    "eta_relative": found.eta or 0.0,
    "state": {
      "skipped": False,
      "interrupted": ticket.is_cancelled,
      "job": ticket.id,
      "job_count": found.count - found.images,
      "job_no": found.images,
      "job_timestamp": time.strftime("%Y%m%d%H%M%S"),
      "sampling_step": max(ticket.rows_done),
      "sampling_steps": per_image,
    },
    "current_image": image,
    "textinfo": f"{found.ahead} images ahead" if found.ahead else None,
  }


def info_of(data: bytes) -> dict[str, Any]:
  """The settings in an image, as A1111 writes them.

  Raises:
    ConfigError: it is not an image.
  """
  try:
    with open_image(io.BytesIO(data), "image") as image:
      texts = {k: v for k, v in image.info.items() if isinstance(v, str)}
  except ImageError as error:
    raise ConfigError(str(error)) from error
  own: Any = {}
  with contextlib.suppress(ConfigError):  # another program's text of that name
    own = parse_object(texts.get("ldm_jax", "{}"), "ldm_jax", ConfigError)
  info = texts.get("parameters", "")
  return {"info": info, "items": texts, "parameters": own}
