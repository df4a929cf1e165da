"""Computes metrics of a run, or of images against images or statistics.

  ldm-jax evaluate runs/X --out runs/X/evaluation
  ldm-jax evaluate SAMPLES REAL
  ldm-jax evaluate SAMPLES VIRTUAL_imagenet256_labeled.npz --resize=legacy
  ldm-jax evaluate PHOTOS --model runs/ae path/to/model --out=DIR

A run of a denoiser generates an image for the conditions of each held-out
example, a run of an autoencoder reconstructs the examples; both are compared
with the examples, or with the given reference. An interrupted evaluation
resumes when it is run again. Prints a table and one line of JSON; metrics whose
network is not given are "unavailable".

With --model, autoencoders reconstruct the images, pages of text and small
patterns, side by side; see docs/evaluation.md. Without images, mosaics of the
built-in data are taken.

Weights are local files: --inception for FID, sFID, KID, IS, precision and
recall; --clip for CLIP score and CMMD; --dino for FDD, the Frechet distance of
DINOv2's features; --lpips_trunk and --lpips_heads.
"""

import json
from collections.abc import Sequence
from typing import Any

from ldm_jax.cli.exit_codes import command, run_command
from ldm_jax.cli.flags.cache_flag import add_cache_flag, use_cache
from ldm_jax.cli.flags.first_stage_flags import (
  add_first_stage_flags,
  first_stage_fields,
)
from ldm_jax.cli.flags.parser import Parser

SMALL = "allow Frechet distances of fewer than 2048 images"
TRAIN = "training images to search for near copies (default 10000; 0: none)"


def parser() -> Parser:
  """The flags of evaluate."""
  flags = Parser("ldm-jax evaluate", __doc__)
  add = flags.add_argument
  add("samples", nargs="?", help="a run, or a folder of images")
  add(
    "reference",
    nargs="?",
    metavar="against",
    help="a folder of images, or statistics (.npz, .pt)",
  )
  add("--out", metavar="DIR", help="folder for images and contact sheets")
  add("--num", type=int, help="the first N (default: all; for a run 1000)")
  add("--inception", metavar="FILE", help="weights-inception-2015-12-05")
  add("--clip", metavar="DIR", help="a CLIPModel of transformers")
  add("--dino", metavar="PATH", help="a Dinov2Model of transformers")
  add("--lpips_trunk", metavar="FILE", help="vgg16-397923af.pth")
  add("--lpips_heads", metavar="FILE", help="the lpips package's vgg.pth")
  add("--resize", choices=("legacy", "clean", "both"), default="both")
  add("--paired", action="store_true", help="compare images of the same name")
  add("--write_statistics", metavar="FILE", help="statistics of SAMPLES")
  add("--allow_small", action="store_true", help=SMALL)
  add("--train", type=int, default=10_000, metavar="N", help=TRAIN)
  add(
    "--metric",
    action="append",
    default=[],
    metavar="PACKAGE.MODULE:NAME",
    help="a metric of your own (needs --trust); may be repeated",
  )
  add("--trust", action="append", default=[], metavar="PACKAGE")
  add = flags.add_argument_group("sampling from a run").add_argument
  add("--steps", type=int, default=50, help="default 50")
  add("--sampler", help="default ddim")
  add("--guidance", type=float, default=1.0, help="scale (default 1: none)")
  add("--eta", type=float, help="noise of DDIM (default: the sampler's)")
  add("--seed", type=int, default=0)
  add("--unconditional", "--null", action="store_true", help="no conditions")
  add_first_stage_flags(flags)
  add_cache_flag(flags)
  return flags


@command
def main(arguments: Sequence[str]) -> int:
  """Reads the flags, evaluates and prints; returns the exit code."""
  flags, _ = parser().read(arguments)
  use_cache(flags)
  fields = vars(flags)
  compared = first_stage_fields(parser(), fields)
  result = _compare(compared) if compared else _evaluate(fields)
  from ldm_jax.runtime.devices import processes

  if processes.is_first():
    for line in (*result.files, result.table(), json.dumps(result.to_json())):
      print(line)
  return 0


def _compare(fields: dict[str, Any]) -> Any:
  from ldm_jax.evaluation.first_stage.evaluate import evaluate_first_stages
  from ldm_jax.evaluation.first_stage.request import FirstStageRequest

  return evaluate_first_stages(FirstStageRequest(**fields))


def _evaluate(fields: dict[str, Any]) -> Any:
  from ldm_jax.evaluation.evaluate import evaluate  # imports jax
  from ldm_jax.evaluation.request import EvaluationRequest

  for name in ("verbose", "quiet", "model", "size", "batch", "rounds"):
    fields.pop(name)
  fields["train_images"] = fields.pop("train")
  fields["metrics"] = tuple(fields.pop("metric"))
  fields["trust"] = tuple(fields["trust"])
  return evaluate(EvaluationRequest(**fields))


if __name__ == "__main__":
  run_command(main)
