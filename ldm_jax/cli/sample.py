"""Generates images from a run of stage two, or from published weights.

  ldm-jax sample --model=runs/X --prompt "a small red circle" --num 16 \\
      --steps 50 --guidance 3 --out outputs

  ldm-jax sample --model=FOLDER_OR_FILE --prompt "a photograph of a fox"

Writes numbered PNGs, which hold their settings, and a grid of them; prints
their paths. Nothing is overwritten.
"""

import dataclasses
import functools
import os
import sys
from collections.abc import Sequence
from typing import Any

from ldm_jax.cli.exit_codes import command, run_command
from ldm_jax.cli.flags import sample_flags
from ldm_jax.cli.flags.cache_flag import add_cache_flag, use_cache
from ldm_jax.cli.flags.flag_notation import add_flags
from ldm_jax.cli.flags.model_flags import (
  add_adapters,
  add_reading,
  add_storage,
  load_options,
)
from ldm_jax.cli.flags.output_flags import OUTPUT
from ldm_jax.cli.flags.parser import Parser
from ldm_jax.errors import ConfigError


def parser() -> Parser:
  """The flags of sample, with the names of A1111 and diffusers as aliases."""
  flags = Parser("ldm-jax sample", __doc__)
  flags.add_argument(
    "--model",
    required=True,
    help="a run, a diffusers folder, a single file, or owner/model of the hub",
  )
  for title, table in (sample_flags.GROUPS | {"output": OUTPUT}).items():
    add_flags(flags, title, table)
  add_storage(flags, has_dtype=True)
  add_reading(flags)
  add_adapters(flags, has_prompts=True)
  flags.set_defaults(out="outputs")
  add_cache_flag(flags)
  return flags


def request_of(flags: Any) -> Any:
  """The `GenerationRequest` of the flags.

  Raises:
    ConfigError: a value is out of its range, or a file of prompts is unusable.
  """
  from ldm_jax.sampling.inputs.files import read_prompts
  from ldm_jax.sampling.request import GenerationRequest

  names = {field.name for field in dataclasses.fields(GenerationRequest)}
  given = {
    name: tuple(value) if isinstance(value, list) else value
    for name, value in vars(flags).items()
    if name in names and value is not None
  }
  is_latent = given.pop("output", None) == "latent"
  given["output"] = "latents" if is_latent else "pil"
  file = getattr(flags, "prompts_file", None)  # export has none
  if file is not None:
    file = sys.stdin if file == "-" else file
    given["prompt"] = (*given.get("prompt", ()), *read_prompts(file))
  return GenerationRequest(**given)


@command
def main(arguments: Sequence[str]) -> int:
  """Reads the flags, generates and writes; returns the exit code."""
  flags, _ = parser().read(arguments)
  use_cache(flags)
  from ldm_jax.runtime.devices import processes
  from ldm_jax.sampling import outputs
  from ldm_jax.sampling.inputs.image_inputs import read_images
  from ldm_jax.sampling.inputs.lora_folder import find_loras
  from ldm_jax.sampling.pipeline import Pipeline

  processes.initialize()
  request = request_of(flags)
  read_images(request)  # checked before weights load
  find_loras(flags.lora_folder, request.prompts)
  pipe = Pipeline.open(flags.model, load_options(flags))
  pipe.lora_folder = flags.lora_folder
  generation = pipe.prepare(request)
  latents = os.path.join(flags.out, "latents.npy")
  if (is_latent := request.output == "latents") and os.path.exists(latents):
    raise ConfigError(f"{latents} exists already; choose another --out")
  os.makedirs(flags.out, exist_ok=True)
  written, batches = functools.partial(print, flush=True), _with_bar(generation)
  if is_latent:
    outputs.write_latents(batches, latents, written=written)
  else:
    options = {"has_metadata": not flags.no_metadata, "written": written}
    outputs.write_images(batches, flags.out, **options)
  return 0


def _with_bar(generation: Any) -> Any:
  """The batches, with the progress of network calls on stderr."""
  from ldm_jax.runtime.monitoring.progress import Progress

  if generation.request.invert:
    yield from generation.batches()
    return
  with Progress("sampling", generation.network_calls) as bar:
    advance = lambda done, total, preview: bar.update(done - bar.done)
    yield from generation.batches(advance, callback_steps=10)


if __name__ == "__main__":
  run_command(main)
