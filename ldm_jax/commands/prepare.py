"""Encodes a config's training images once, for stage two to learn from.

  python -m ldm_jax.commands.prepare --config=configs/Y.py \\
    --first_stage=runs/X --out=latents/Y
  python train.py --config=configs/Y.py --workdir=runs/Y \\
    --config.first_stage=runs/X --config.data.latents=latents/Y

What is kept is the posterior's mean and log-variance, so that noise is drawn
anew whenever an example is seen; its crop and its mirroring stay. Stopped, the
same command goes on. Several processes share the work on one file system.
"""

from collections.abc import Sequence

from ldm_jax.commands.doors import Parser, enter


def parser() -> Parser:
  """The flags of prepare."""
  flags = Parser("python -m ldm_jax.commands.prepare", __doc__)
  add = flags.add_argument
  add(
    "--config",
    required=True,
    metavar="FILE",
    help="whose data.source; then --config.FIELD[.FIELD...]=VALUE sets fields",
  )
  add("--first_stage", required=True, metavar="RUN", help="a run of stage one")
  add("--out", required=True, metavar="DIR", help="gets the latents")
  add(
    "--copies",
    type=int,
    default=1,
    help="of every example, each cropped and mirrored anew (default 1)",
  )
  add("--batch", type=int, default=64, help="images at a time (default 64)")
  add(
    "--dtype",
    choices=("float32", "float16"),
    default="float16",
    help="of what is kept (default float16)",
  )
  add("--threads", type=int, default=8, help="that read images (default 8)")
  return flags


def main(arguments: Sequence[str]) -> int:
  """Reads the flags and encodes; returns the exit code."""
  flags, overrides = parser().read(arguments, "config")
  from ldm_jax.commands import preparing  # brings jax

  return preparing.prepare(flags, overrides)


if __name__ == "__main__":
  enter(main)
