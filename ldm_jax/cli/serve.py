"""Serves a model: a web page, and the HTTP APIs of A1111 and OpenAI.

  ldm-jax serve --model=runs/X
  ldm-jax serve --model=FOLDER_OR_FILE --host 0.0.0.0 --api_key key.txt

Prints its address once it answers. Images of all clients are denoised
together, each with its own settings. SIGTERM and Ctrl-C finish what was
submitted first. Needs the extra web: pip install 'ldm_jax[web]'.
"""

import dataclasses
import functools
from collections.abc import Sequence

from ldm_jax.cli.exit_codes import command, run_command
from ldm_jax.cli.flags.cache_flag import add_cache_flag, use_cache
from ldm_jax.cli.flags.flag_notation import add_flags
from ldm_jax.cli.flags.model_flags import (
  add_adapters,
  add_reading,
  add_storage,
  load_options,
)
from ldm_jax.cli.flags.parser import Parser

SERVER = """
--host: ADDRESS
  to bind to; 0.0.0.0 is every network of the machine (default: 127.0.0.1)
--port: int
  0 takes a free one (default: 7860)
--name: text
  of the model for clients (default: the last part of its path)
--slots: int
  images that are denoised together (default: 4)
--api_key: FILE
  its first line is the key that every client must send
--allowed_origins: URL+
  a page whose scripts may read answers (CORS); repeat it for several
--controlnets: FOLDER+
  a ControlNet that the page offers; repeat it for several
--preview_decoder: PATH
  a small autoencoder of the model's latents, such as TAESD, that decodes
  previews: a run, a folder, a file, or owner/model (default: a linear map)
--no_page: yes
  the HTTP API alone
--drain: int
  seconds for which requests are finished at the end (default: 60)
"""
LIMITS = """
--max_queue: int
  images that wait, of all clients (default: 256)
--max_images: int
  of one request (default: 16)
--max_steps: int
  of one image (default: 150)
--max_pixels: int
  of one image (default: 4194304)
--max_body: int
  bytes of one HTTP request (default: 67108864)
"""
_NAMES = {"max_queue": "queue", "max_images": "images", "max_steps": "steps"}
_NAMES |= {"max_pixels": "pixels", "max_body": "body"}


def parser() -> Parser:
  """The flags of serve."""
  flags = Parser("ldm-jax serve", __doc__)
  flags.add_argument(
    "--model",
    required=True,
    help="a run, a diffusers folder, a single file, or owner/model of the hub",
  )
  add_flags(flags, "server", SERVER)
  add_flags(flags, "limits", LIMITS)
  add_storage(flags)
  add_reading(flags)
  add_adapters(flags, has_prompts=True)
  add_cache_flag(flags)
  return flags


@command
def main(arguments: Sequence[str]) -> int:
  """Reads the flags and serves; returns the exit code."""
  flags, _ = parser().read(arguments)
  use_cache(flags)
  from ldm_jax.serving.limits import Limits
  from ldm_jax.serving.serve import ServeRequest, serve

  given = {k: v for k, v in vars(flags).items() if v is not None}
  names = {field.name for field in dataclasses.fields(ServeRequest)}
  fields = {name: given[name] for name in names if name in given}
  for name in ("allowed_origins", "controlnets"):
    if name in fields:
      fields[name] = tuple(fields[name])
  limits = {new: given[old] for old, new in _NAMES.items() if old in given}
  request = ServeRequest(
    **fields,
    options=load_options(flags, ignored=("name",)),
    limits=Limits(**limits),
    has_page=not given.get("no_page", False),
  )
  serve(request, functools.partial(print, flush=True))
  return 0


if __name__ == "__main__":
  run_command(main)
