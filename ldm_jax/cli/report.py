"""Measures a run of a denoiser and writes an HTML report.

  ldm-jax report --model=runs/X --out=runs/report

The report is one HTML file: metrics, loss curves, reconstructions of held-out
images and samples with their captions. For the built-in glyphs data it also
measures how well samples match their conditions. Prints the report's path and
one line of JSON.
"""

import json
from collections.abc import Sequence

from ldm_jax.cli.exit_codes import command, run_command
from ldm_jax.cli.flags.cache_flag import add_cache_flag, use_cache
from ldm_jax.cli.flags.parser import Parser


def parser() -> Parser:
  """The flags of report."""
  flags = Parser("ldm-jax report", __doc__)
  add = flags.add_argument
  add("--model", required=True, metavar="RUN", help="a run of a denoiser")
  add("--out", required=True, metavar="DIR", help="for report.html")
  add("--num", type=int, default=256, help="samples (default 256)")
  add("--steps", type=int, default=15, help="of DDIM (default 15)")
  add("--guidance", type=float, default=2.0, help="scale (default 2)")
  add("--eta", type=float, default=0.0, help="noise of DDIM (default 0)")
  add("--seed", type=int, default=0)
  add(
    "--held_out",
    action="store_true",
    help="(shape, colour) pairs excluded from training (glyphs)",
  )
  add("--classifier", metavar="RUN", help="guides towards the examples' labels")
  add("--classifier_scale", type=float, default=1.0, help="default 1")
  add("--unconditional", "--null", action="store_true", help="no conditions")
  add("--trust", action="append", default=[], metavar="PACKAGE")
  add_cache_flag(flags)
  return flags


@command
def main(arguments: Sequence[str]) -> int:
  """Reads the flags, reports and prints; returns the exit code."""
  flags, _ = parser().read(arguments)
  use_cache(flags)
  from ldm_jax.evaluation.report import ReportRequest, report  # imports jax

  fields = vars(flags)
  fields.pop("verbose"), fields.pop("quiet")
  fields["trust"] = tuple(fields["trust"])
  result = report(ReportRequest(**fields))
  print(result.page)
  print(json.dumps(result.to_json()))
  return 0


if __name__ == "__main__":
  run_command(main)
