"""Does once what every epoch would do again: small images, or latents.

  python -m ldm_jax.cli.prepare --config=configs/Y.py --out=images/Y

resizes a config's training images and packs them into array records, which
Shards("images/Y") reads in the place of the config's source.

  python -m ldm_jax.cli.prepare --config=configs/Y.py \\
    --first_stage=runs/X --out=latents/Y
  python train.py --config=configs/Y.py --workdir=runs/Y \\
    --config.first_stage=runs/X --config.data.latents=latents/Y

encodes them. What is kept is the posterior's mean and log-variance, so that
noise is drawn anew whenever an example is seen; its crop and its mirroring
stay.

Stopped, the same command goes on. Several processes share the work on one file
system.
"""

from collections.abc import Sequence

from ldm_jax.cli.exit_codes import USAGE, CommandError, run_command
from ldm_jax.cli.parser import Parser


def parser() -> Parser:
  """The flags of prepare."""
  flags = Parser("python -m ldm_jax.cli.prepare", __doc__)
  add = flags.add_argument
  add(
    "--config",
    required=True,
    metavar="FILE",
    help="whose data.source; then --config.FIELD[.FIELD...]=VALUE sets fields",
  )
  add("--out", required=True, metavar="DIR", help="gets what is made")
  add("--threads", type=int, default=8, help="that read images (default 8)")
  images = flags.add_argument_group("images")
  images.add_argument(
    "--size",
    type=int,
    help="of the shorter side; smaller images stay (default: what the config's "
    "smallest crop needs)",
  )
  images.add_argument(
    "--format",
    choices=("jpg", "png"),
    default="jpg",
    help="jpg of quality 95, or png without loss (default jpg)",
  )
  latents = flags.add_argument_group("latents")
  add = latents.add_argument
  add("--first_stage", metavar="RUN", help="a run of stage one, to encode by")
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
  return flags


def main(arguments: Sequence[str]) -> int:
  """Reads the flags, and packs or encodes; returns the exit code."""
  flags, overrides = parser().read(arguments, "config")
  if flags.size is not None and flags.size < 1:
    raise CommandError(f"--size must be 1 or more, got {flags.size}", USAGE)
  from ldm_jax.training import prepare_images, prepare_latents  # bring jax

  if flags.first_stage is None:
    return prepare_images.prepare_images(flags, overrides)
  return prepare_latents.prepare_latents(flags, overrides)


if __name__ == "__main__":
  run_command(main)
