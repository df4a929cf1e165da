"""Judges a run of stage two and writes a report with pictures.

  python -m ldm_jax.cli.report --model=runs/X --out=runs/report

The report is one HTML file: loss curves, reconstructions of held-out images,
captioned samples, and, for the built-in glyphs, what the judge reads in them:
whether every condition the model is told is obeyed.
One line of JSON on stdout ends it.
"""

from collections.abc import Sequence

from ldm_jax.cli.exit_codes import run_command
from ldm_jax.cli.parser import Parser


def parser() -> Parser:
  """The flags of the report."""
  flags = Parser("python -m ldm_jax.cli.report", __doc__)
  add = flags.add_argument
  add("--model", required=True, metavar="RUN", help="a run of stage two")
  add("--out", required=True, metavar="DIR", help="gets report.html")
  add("--num", type=int, default=256, help="samples to judge (default 256)")
  add("--steps", type=int, default=15, help="of DDIM (default 15)")
  add("--guidance", type=float, default=2.0, help="scale (default 2)")
  add("--eta", type=float, default=0.0, help="noise of DDIM (default 0)")
  add("--seed", type=int, default=0)
  add(
    "--held_out",
    action="store_true",
    help="judge by shapes and colours that training never paired",
  )
  add("--classifier", metavar="RUN", help="guides to the examples' labels")
  add("--classifier_scale", type=float, default=1.0, help="default 1")
  add(
    "--null", action="store_true", help="say nothing: samples of no condition"
  )
  return flags


def main(arguments: Sequence[str]) -> int:
  """Reads the flags and reports; returns the exit code."""
  flags, _ = parser().read(arguments)
  from ldm_jax.evaluation import report  # brings jax

  return report.report(flags)


if __name__ == "__main__":
  run_command(main)
