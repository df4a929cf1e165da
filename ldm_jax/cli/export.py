"""Exports a whole guided sampler that runs without this package.

  python -m ldm_jax.cli.export --model=runs/X --out=portable/X
  python portable/X/run.py --prompt "a red circle" --num 4

The folder holds the sampler as StableHLO for CPUs, CUDA and TPUs, its weights,
its tokenizers and run.py, which needs jax, numpy, pillow and tokenizers alone.
Size, sampler and steps are fixed; prompts, seed, guidance and the number of
images are not.
"""

from collections.abc import Sequence

from ldm_jax.cli.exit_codes import run_command
from ldm_jax.cli.model_flags import add_adapters, add_reading
from ldm_jax.cli.parser import Parser
from ldm_jax.cli.sample import add_sampling


def parser() -> Parser:
  """The flags of export."""
  flags = Parser("python -m ldm_jax.cli.export", __doc__)
  add = flags.add_argument
  add("--model", required=True, help="a run, a folder, a file, or owner/model")
  add("--out", required=True, metavar="DIR", help="must not be there yet")
  add(*("--height", "-H"), type=int, help="pixels (default: as trained)")
  add(*("--width", "-W"), type=int, help="pixels (default: as trained)")
  add(
    "--guidance",
    type=float,
    help="scale that run.py takes by default (default: the model's)",
  )
  add(
    "--inside",
    action="store_true",
    help="put the weights into the program instead of beside it",
  )
  add_sampling(flags)
  add_adapters(flags)
  add_reading(flags)
  return flags


def main(arguments: Sequence[str]) -> int:
  """Reads the flags and exports; returns the exit code."""
  flags, _ = parser().read(arguments)
  from ldm_jax.sampling import export  # brings jax

  return export.export(flags)


if __name__ == "__main__":
  run_command(main)
