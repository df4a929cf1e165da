"""ldm-jax: latent diffusion in JAX.

ldm-jax COMMAND [options]; `ldm-jax COMMAND --help` lists the options of one.
"""

import difflib
import importlib
import sys
from collections.abc import Sequence

from ldm_jax.cli.exit_codes import USAGE, CommandError, run_command

COMMANDS = {
  "train": "train either stage, or resume a run",
  "sample": "generate images from a run or from published weights",
  "serve": "a web page and an HTTP API for a model",
  "watch": "follow runs on a web page while they train",
  "evaluate": "metrics of a run, of folders of images or of autoencoders",
  "report": "score a run on the built-in data and write an HTML report",
  "convert": "convert between runs, diffusers folders and single files",
  "push": "upload a run, a folder of weights or an adapter to the hub",
  "info": "describe a model, a run or a generated PNG",
  "prepare": "resize a data set once, or cache its latents",
  "plan": "memory and cost of an experiment, also on absent devices",
  "verify": "check every checkpoint of a run",
  "export": "export a sampler that runs without this package",
  "retrieve": "embed images and find nearest neighbours, for RDM",
}


def main(arguments: Sequence[str]) -> int:
  """Runs the command that the first argument names."""
  name, *rest = arguments or ["--help"]
  if name in ("-h", "--help"):
    print(_help())
    return 0
  if name == "--version":
    import ldm_jax

    print(f"ldm-jax {ldm_jax.__version__}")
    return 0
  if name not in COMMANDS:
    close = difflib.get_close_matches(name, COMMANDS, 1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise CommandError(
      f"unknown command {name!r}{hint} (see ldm-jax --help)", USAGE
    )
  return importlib.import_module(f"ldm_jax.cli.{name}").main(rest)


def entry() -> None:
  """The console script."""
  run_command(main, sys.argv[1:])


def _help() -> str:
  rows = (f"  {name:10} {text}" for name, text in COMMANDS.items())
  return "\n".join([__doc__.strip(), "", "commands:", *rows])
