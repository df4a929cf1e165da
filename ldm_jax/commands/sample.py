"""Draws images from a run of stage two, or from Stable Diffusion's weights.

  python sample.py --model=runs/X --prompt "a small red circle" --num 16 \\
      --steps 50 --guidance 3 --out outputs

  python sample.py --model=FOLDER_OR_FILE --prompt "a photograph of a fox"

Writes numbered PNGs, which hold their settings, and a grid of them; prints
their paths. Nothing is overwritten.
"""

from collections.abc import Sequence

from ldm_jax.commands.doors import Parser, enter
from ldm_jax.commands.reading import add_reading


def parser() -> Parser:
  """The flags of sample.py, with the names people know from elsewhere."""
  flags = Parser("sample.py", __doc__)
  flags.add_argument(
    "--model",
    required=True,
    help="a run, a diffusers folder, a single file, or owner/model of the hub",
  )
  _add_wishes(flags)
  _add_sampling(flags)
  _add_noise(flags)
  _add_output(flags)
  add_reading(flags)
  _add_adapters(flags)
  return flags


def _add_wishes(flags: Parser) -> None:
  """What is to be drawn, and how many of it."""
  add = flags.add_argument_group("what to draw").add_argument
  add(
    "--prompt",
    action="append",
    default=[],
    help="what to draw; repeat it for several",
  )
  add("--negative_prompt", help="what guidance leads away from")
  add("--class_label", type=int, help="a class, for models that know classes")
  add(
    *("--num", "-n"),
    type=int,
    default=1,
    help="images per prompt (default 1)",
  )
  add(
    "--clip_skip",
    type=int,
    metavar="N",
    help="2 leaves the last block of CLIP out, beyond what the model leaves "
    "out anyway; 1 is as trained",
  )
  add(*("--height", "-H"), type=int, help="pixels (default: as trained)")
  add(*("--width", "-W"), type=int, help="pixels (default: as trained)")


def _add_sampling(flags: Parser) -> None:
  """The way from noise to an image."""
  add = flags.add_argument_group("sampling").add_argument
  add(
    *("--steps", "-s", "--num_inference_steps", "--ddim_steps"),
    type=int,
    default=50,
    help="of the sampler, 1 to the length of the schedule (default 50)",
  )
  add(
    *("--guidance", "--guidance_scale", "--cfg_scale", "--scale"),
    type=float,
    help="scale of classifier-free guidance; 1 is none (default 3 for a run, "
    "7.5 for Stable Diffusion, 5 for SDXL)",
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
  add("--batch", type=int, default=16, help="images at a time (default 16)")
  add(
    "--dtype",
    choices=("float32", "bfloat16"),
    help="of foreign parameters and computation (default float32)",
  )


def _add_noise(flags: Parser) -> None:
  """What sampling begins with."""
  add = flags.add_argument_group("noise").add_argument
  add("--seed", type=int, default=0, help="images are (seed, index)")
  add(
    "--rng",
    choices=("jax", "torch"),
    default="jax",
    help="whose noise; torch's makes the pictures of other programs (ddim)",
  )
  add(
    "--initial_latents",
    metavar="FILE.npy",
    help="(N, H, W, C) of unit variance in place of the seed's noise",
  )


def _add_output(flags: Parser) -> None:
  """What is written, and where."""
  add = flags.add_argument_group("output").add_argument
  add(*("--out", "-o", "--outdir"), default="outputs", metavar="DIR")
  add(
    "--output",
    choices=("png", "latent"),
    default="png",
    help="latent writes latents.npy (N, H, W, C) as they leave the sampler",
  )
  add(
    "--no_metadata",
    action="store_true",
    help="leave the settings out of the PNGs",
  )


def _add_adapters(flags: Parser) -> None:
  """What changes a model before it draws."""
  add = flags.add_argument_group("adapters").add_argument
  add(
    "--lora",
    action="append",
    metavar="FILE[:SCALE]",
    help="a LoRA to merge, SCALE times (default 1); repeat it for several",
  )
  add(
    "--embedding",
    action="append",
    metavar="FILE",
    help="a word learned by textual inversion; repeat it for several",
  )


def main(arguments: Sequence[str]) -> int:
  """Reads the flags and draws; returns the exit code."""
  flags, _ = parser().read(arguments)
  from ldm_jax.commands import drawing  # brings jax

  return drawing.draw(flags)


if __name__ == "__main__":
  enter(main)
