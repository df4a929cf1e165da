"""Exports a whole guided sampler that runs without this package.

  ldm-jax export --model=runs/X --out=portable/X
  python portable/X/run.py --prompt "a red circle" --num 4

The folder holds the sampler as StableHLO for CPUs, CUDA and TPUs, its weights,
its tokenizers and run.py, which needs jax, flatbuffers, numpy, pillow and
tokenizers alone.
Size, sampler and steps are fixed; prompts, seed, guidance and the number of
images are not.
"""

from collections.abc import Sequence

from ldm_jax.cli.exit_codes import command, run_command
from ldm_jax.cli.flags import sample_flags
from ldm_jax.cli.flags.flag_notation import add_flags
from ldm_jax.cli.flags.model_flags import (
  add_adapters,
  add_reading,
  load_options,
)
from ldm_jax.cli.flags.parser import Parser
from ldm_jax.cli.sample import request_of

EXPORT = """
--height -H: int
  pixels (default: as trained)
--width -W: int
  pixels (default: as trained)
--guidance: float
  scale that run.py takes by default (default: the model's)
--chunks: int
  the most chunks of 75 tokens that a prompt may have (default: 1)
--inside: yes
  put the weights into the program instead of a file next to it
"""


def parser() -> Parser:
  """The flags of export."""
  flags = Parser("ldm-jax export", __doc__)
  add = flags.add_argument
  add("--model", required=True, help="a run, a folder, a file, or owner/model")
  add("--out", required=True, metavar="DIR", help="must not exist")
  add_flags(flags, "what is exported", EXPORT)
  add_flags(flags, "sampling", sample_flags.SAMPLING)
  add_adapters(flags)
  add_reading(flags)
  return flags


@command
def main(arguments: Sequence[str]) -> int:
  """Reads the flags and exports; returns the exit code."""
  flags, _ = parser().read(arguments)
  from ldm_jax.sampling.export import ExportRequest, export

  request = ExportRequest(
    model=flags.model,
    out=flags.out,
    sampling=request_of(flags),
    options=load_options(flags),
    is_inside=bool(flags.inside),
    chunks=1 if flags.chunks is None else flags.chunks,
  )
  print(export(request).folder)
  return 0


if __name__ == "__main__":
  run_command(main)
