"""Prepares a data set once: small images, or latents.

  ldm-jax prepare --config=configs/Y.py --out=images/Y

resizes a config's training images and packs them into array records, which
Shards("images/Y") reads in place of the config's source.

  ldm-jax prepare --config=configs/Y.py --first_stage=runs/X --out=latents/Y
  ldm-jax train --config=configs/Y.py --workdir=runs/Y \\
    --config.first_stage=runs/X --config.data.latents=latents/Y

encodes them. With --texts the outputs of frozen text encoders are stored with
the latents, and training runs none of them. The posterior's mean and
log-variance are stored, so training still draws a new sample of the posterior
at every step; each example's crop and mirroring are fixed.

An interrupted command resumes when it is run again. Several processes share the
work on one file system.
"""

from collections.abc import Sequence

from ldm_jax.cli.exit_codes import command, run_command
from ldm_jax.cli.flags.cache_flag import add_cache_flag, use_cache
from ldm_jax.cli.flags.parser import Parser


def parser() -> Parser:
  """The flags of prepare."""
  flags = Parser("ldm-jax prepare", __doc__)
  add = flags.add_argument
  add(
    "--config",
    required=True,
    metavar="FILE",
    help="whose data.source; --config.FIELD[.FIELD...]=VALUE sets fields",
  )
  add("--out", required=True, metavar="DIR", help="the folder to write")
  add("--threads", type=int, default=8, help="that read images (default 8)")
  add("--trust", action="append", default=[], metavar="PACKAGE")
  add = flags.add_argument_group("images").add_argument
  add(
    "--size",
    type=int,
    help="of the shorter side; smaller images are kept (default: what "
    "the config's smallest crop needs)",
  )
  add(
    "--format",
    choices=("jpg", "png"),
    default="jpg",
    help="jpg of quality 95, or png without loss (default jpg)",
  )
  add = flags.add_argument_group("latents").add_argument
  add(
    "--first_stage", metavar="RUN", help="the run of stage one to encode with"
  )
  add(
    "--copies",
    type=int,
    default=1,
    help="of every example, each with its own random crop (default 1)",
  )
  add("--batch", type=int, default=64, help="images at a time (default 64)")
  add(
    "--dtype",
    choices=("float32", "float16"),
    default="float16",
    help="of the stored moments (default float16)",
  )
  add(
    "--texts",
    action="store_true",
    help="store the outputs of the config's frozen text encoders too",
  )
  add_cache_flag(flags)
  return flags


@command
def main(arguments: Sequence[str]) -> int:
  """Reads the flags, and packs or encodes; returns the exit code."""
  flags, overrides = parser().read(arguments, "config")
  use_cache(flags)
  from ldm_jax.runtime.devices import processes
  from ldm_jax.training.preparation.prepare import prepare
  from ldm_jax.training.preparation.request import PrepareRequest

  request = PrepareRequest(
    config=flags.config,
    out=flags.out,
    overrides=overrides,
    first_stage=flags.first_stage,
    size=flags.size,
    format=flags.format,
    copies=flags.copies,
    batch=flags.batch,
    dtype=flags.dtype,
    texts=flags.texts,
    threads=flags.threads,
    trust=tuple(flags.trust),
  )
  result = prepare(request)
  if processes.is_first():
    print(result.folder)
  return 0


if __name__ == "__main__":
  run_command(main)
