"""Measures a run, or pictures beside others or beside statistics.

  python -m ldm_jax.cli.evaluate runs/X --out runs/X/evaluation
  python -m ldm_jax.cli.evaluate SAMPLES REAL
  python -m ldm_jax.cli.evaluate SAMPLES VIRTUAL_imagenet256_labeled.npz \\
    --resize=legacy

A run of stage two draws a picture for what it is told of each held-out example,
one of stage one reconstructs them; both are compared with the examples, or with
what is named beside them. Stopped, it goes on where it was. A table and one
line of JSON end it. Metrics whose network was not given are "unavailable".

Weights are files on this machine: --inception for FID, sFID, KID, IS, precision
and recall; --clip for CLIP score and CMMD; --lpips_trunk and --lpips_heads.
"""

from collections.abc import Sequence

from ldm_jax.cli.exit_codes import run_command
from ldm_jax.cli.parser import Parser


def parser() -> Parser:
  """The flags of evaluate."""
  flags = Parser("python -m ldm_jax.cli.evaluate", __doc__)
  add = flags.add_argument
  add("samples", help="a run, or a folder of pictures")
  add(
    "against", nargs="?", help="a folder of pictures, or statistics (.npz, .pt)"
  )
  add("--out", metavar="DIR", help="gets what a run draws, and sheets")
  add("--num", type=int, help="the first N (default all; 1000 of a run)")
  add("--inception", metavar="FILE", help="weights-inception-2015-12-05")
  add("--clip", metavar="DIR", help="of transformers' CLIPModel")
  add("--lpips_trunk", metavar="FILE", help="vgg16-397923af.pth")
  add("--lpips_heads", metavar="FILE", help="the lpips package's vgg.pth")
  add("--resize", choices=("legacy", "clean", "both"), default="both")
  add("--paired", action="store_true", help="pictures of one name are compared")
  add("--write_statistics", metavar="FILE", help="of SAMPLES, to compare with")
  add("--allow_small", action="store_true", help=SMALL)
  add("--train", type=int, default=10_000, metavar="N", help=TRAIN)
  draw = flags.add_argument_group("what a run of stage two draws")
  add = draw.add_argument
  add("--steps", type=int, default=50, help="default 50")
  add("--sampler", help="default ddim")
  add("--guidance", type=float, default=1.0, help="scale (default 1: none)")
  add("--eta", type=float, help="noise that is added (default the sampler's)")
  add("--seed", type=int, default=0)
  add("--null", action="store_true", help="say nothing")
  return flags


SMALL = "take Frechet distances of fewer than 2048 pictures"
TRAIN = "training pictures to look for copies of (default 10000; 0 for none)"


def main(arguments: Sequence[str]) -> int:
  """Reads the flags and evaluates; returns the exit code."""
  flags, _ = parser().read(arguments)
  from ldm_jax.evaluation import evaluate  # brings jax

  return evaluate.evaluate(flags)


if __name__ == "__main__":
  run_command(main)
