"""The flags of `ldm-jax evaluate` that compare autoencoders."""

from collections.abc import Mapping
from typing import Any

from ldm_jax.cli.exit_codes import USAGE, CommandError
from ldm_jax.cli.flags.parser import Parser

_OWN = ("size", "batch", "rounds")
_SHARED = ("out", "num", "inception", "dino", "lpips_trunk", "lpips_heads")
_SHARED += ("resize", "allow_small", "trust")
_OF_ALL_COMMANDS = ("model", "samples", "verbose", "quiet")


def add_first_stage_flags(flags: Parser) -> None:
  """Adds --model and what belongs to it."""
  add = flags.add_argument_group("autoencoders side by side").add_argument
  what = "runs, folders, files or repositories; SAMPLES are the images"
  add("--model", nargs="+", metavar="MODEL", help=what)
  add("--size", type=int, help="pixels of a side (default 256)")
  add("--batch", type=int, help="images at a time (default 8)")
  add("--rounds", type=int, help="rounds of timing (default 5)")


def first_stage_fields(flags: Parser, fields: Mapping[str, Any]) -> dict:
  """The fields of a FirstStageRequest; {} without --model.

  Raises:
    CommandError: a flag does not go with --model, or needs it.
  """
  given = {n: v for n, v in fields.items() if v != flags.get_default(n)}
  if not fields["model"]:
    wrong = [name for name in _OWN if name in given]
    if wrong:
      raise CommandError(f"--{wrong[0]} needs --model", USAGE)
    if not fields["samples"]:
      raise CommandError(
        "give a run or a folder of images, or autoencoders by --model", USAGE
      )
    return {}
  known = (*_OWN, *_SHARED, *_OF_ALL_COMMANDS)
  wrong = [name for name in given if name not in known]
  if wrong:
    raise CommandError(f"{wrong[0]} does not go with --model", USAGE)
  found = {n: v for n, v in given.items() if n in _OWN + _SHARED}
  found |= {"models": tuple(fields["model"]), "images": fields["samples"]}
  return found | {"trust": tuple(fields["trust"])}
