"""Draws images from a run of stage two.

  python sample.py --model=runs/X --prompt "a small red circle" --num 16 \\
      --steps 50 --guidance 3 --out outputs

Writes numbered PNGs, which hold their settings, and a grid of them; prints
their paths. Nothing is overwritten.
"""

from collections.abc import Sequence

from ldm_jax.commands.doors import Parser, enter


def parser() -> Parser:
  """The flags of sample.py, with the names people know from elsewhere."""
  flags = Parser("sample.py", __doc__)
  add = flags.add_argument
  add("--model", required=True, metavar="RUN", help="a run folder")
  add(
    "--prompt",
    action="append",
    default=[],
    help="what to draw; repeat it for several",
  )
  add("--negative_prompt", default="", help="what guidance leads away from")
  add("--class_label", type=int, help="a class, for models that know classes")
  add(
    *("--num", "-n"),
    type=int,
    default=1,
    help="images per prompt (default 1)",
  )
  add(
    *("--steps", "-s", "--num_inference_steps", "--ddim_steps"),
    type=int,
    default=50,
    help="of the sampler, 1 to the length of the schedule (default 50)",
  )
  add(
    *("--guidance", "--guidance_scale", "--cfg_scale", "--scale"),
    type=float,
    default=3.0,
    help="scale of classifier-free guidance; 1 is none (default 3)",
  )
  add("--sampler", choices=("ddim", "ddpm"), default="ddim")
  add(
    "--grid",
    choices=("leading", "trailing", "linspace"),
    default="leading",
    help="how the steps lie in time (default leading)",
  )
  add(
    "--eta",
    type=float,
    help="noise: of DDIM 0 to 1 (default 0), of DDPM a factor (default 1)",
  )
  add("--seed", type=int, default=0, help="images are (seed, index)")
  add("--batch", type=int, default=16, help="images at a time (default 16)")
  add(*("--height", "-H"), type=int, help="pixels (default: as trained)")
  add(*("--width", "-W"), type=int, help="pixels (default: as trained)")
  add(*("--out", "-o", "--outdir"), default="outputs", metavar="DIR")
  add(
    "--no_metadata",
    action="store_true",
    help="leave the settings out of the PNGs",
  )
  return flags


def main(arguments: Sequence[str]) -> int:
  """Reads the flags and draws; returns the exit code."""
  flags, _ = parser().read(arguments)
  from ldm_jax.commands import drawing  # brings jax

  return drawing.draw(flags)


if __name__ == "__main__":
  enter(main)
