"""Draws images from a run of stage two, or from Stable Diffusion's weights.

  python sample.py --model=runs/X --prompt "a small red circle" --num 16 \\
      --steps 50 --guidance 3 --out outputs

  python sample.py --model=FOLDER_OR_FILE --prompt "a photograph of a fox"

Writes numbered PNGs, which hold their settings, and a grid of them; prints
their paths. Nothing is overwritten.
"""

from collections.abc import Sequence

from ldm_jax.cli.exit_codes import run_command
from ldm_jax.cli.model_flags import add_adapters, add_control, add_reading
from ldm_jax.cli.parser import Parser


def parser() -> Parser:
  """The flags of sample.py, with the names people know from elsewhere."""
  flags = Parser("sample.py", __doc__)
  flags.add_argument(
    "--model",
    required=True,
    help="a run, a diffusers folder, a single file, or owner/model of the hub",
  )
  _add_wishes(flags)
  _add_conditions(flags)
  add_sampling(flags)
  _add_guidance(flags)
  _add_noise(flags)
  _add_pictures(flags)
  add_control(flags)
  _add_memory(flags)
  _add_output(flags)
  add_reading(flags)
  add_adapters(flags)
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
  add(
    *("--prompts_file", "--from_file"),
    metavar="FILE",
    help="prompts, one a line; - reads them from stdin",
  )
  add(
    "--interpolate",
    type=int,
    metavar="N",
    help="N images on the way from one prompt to another, or from the first "
    "noise to the second",
  )
  add(
    "--emphasis",
    action="store_true",
    help="read (word:1.3), (word) and [word] in prompts as weights",
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


def _add_conditions(flags: Parser) -> None:
  """What else a model may be told."""
  add = flags.add_argument_group("other conditions").add_argument
  add(
    "--segmap",
    metavar="FILE",
    help="a map: a PNG whose grey values or palette indices are classes",
  )
  add(
    "--depth",
    metavar="FILE",
    help="a PNG of grey values, the nearer the lighter, for models of depth",
  )
  add(
    "--layout",
    metavar="FILE",
    help='boxes: JSON such as [{"class": 3, "box": [0.1, 0.2, 0.5, 0.9]}], '
    "left, top, right and bottom of the image",
  )
  add(
    "--neighbours",
    metavar="FILE",
    help="embeddings to be like, an .npy of ldm_jax.cli.retrieve",
  )


def add_sampling(flags: Parser) -> None:
  """The way from noise to an image."""
  add = flags.add_argument_group("sampling").add_argument
  add(
    *("--steps", "-s", "--num_inference_steps", "--ddim_steps"),
    type=int,
    default=50,
    help="of the sampler, 1 to the length of the schedule (default 50)",
  )
  add(
    "--sampler",
    metavar="NAME",
    help="such as ddim, euler a, DPM++ 2M Karras, UniPCMultistepScheduler "
    "(default: what the model is used with)",
  )
  add(
    "--grid",
    metavar="NAME",
    help="how the steps lie: leading, trailing, linspace, quadratic, karras, "
    "exponential, beta, sgm_uniform, simple, kl_optimal, lcm",
  )
  add("--times", metavar="T,T,...", help="the steps' times, falling, instead")
  add("--sigmas", metavar="S,S,...", help="their sigma / signal, instead")
  add("--order", type=int, help="of deis, lms, unipc")
  add(
    "--eta",
    type=float,
    help="scale of the noise that samplers add (ddim 0, ancestral ones 1)",
  )
  add(
    "--compat",
    choices=("diffusers",),
    help="repeat diffusers' grids, roundings and mistakes",
  )
  add("--batch", type=int, default=16, help="images at a time (default 16)")
  add(
    "--dtype",
    choices=("float32", "bfloat16"),
    help="of foreign parameters and computation (default float32)",
  )


def _add_guidance(flags: Parser) -> None:
  """How closely what is said is followed."""
  add = flags.add_argument_group("guidance").add_argument
  add(
    *("--guidance", "--guidance_scale", "--cfg_scale", "--scale"),
    type=float,
    help="scale of classifier-free guidance; 1 is none (default 3 for a run, "
    "7.5 for Stable Diffusion, 5 for SDXL)",
  )
  add(
    "--guidance_rescale",
    type=float,
    default=0.0,
    help="0 to 1: lead the spread of what is guided back (default 0)",
  )
  add(
    "--guidance_interval",
    type=float,
    nargs=2,
    default=(0.0, 1.0),
    metavar=("FROM", "TO"),
    help="guide between these shares of the noise's time (default 0 1)",
  )
  add(
    "--threshold",
    type=float,
    nargs=2,
    metavar=("QUANTILE", "MOST"),
    help="dynamic thresholding of x0, for models of pixels (e.g. 0.995 1.5)",
  )


def _add_pictures(flags: Parser) -> None:
  """Pictures to begin with."""
  add = flags.add_argument_group("pictures to begin with").add_argument
  add(
    *("--image", "--init_img", "-i"),
    metavar="FILE",
    help="to change, to fill in, or to enlarge",
  )
  add("--mask", metavar="FILE", help="white where something new is drawn")
  add(
    "--outpaint",
    metavar="L,T,R,B",
    help="pixels to add to the image at its left, top, right and bottom",
  )
  add(
    "--strength",
    type=float,
    default=None,
    help="above 0 to 1: how much of the image may change (default 0.8; 1 "
    "under a mask)",
  )
  add(
    "--invert",
    action="store_true",
    help="write the noise that --image comes from, for --initial_latents",
  )
  add(
    "--noise_level",
    type=int,
    help="of upscaling: noise on the small image (default 20)",
  )


def _add_memory(flags: Parser) -> None:
  """Large images in little memory."""
  add = flags.add_argument_group("large images").add_argument
  add(
    "--tiled",
    type=int,
    nargs="?",
    const=512,
    metavar="PIXELS",
    help="encode and decode in overlapping tiles (default 512)",
  )
  add(
    "--window",
    type=int,
    metavar="PIXELS",
    help="denoise in overlapping windows, such as the size of training",
  )


def _add_noise(flags: Parser) -> None:
  """What sampling begins with."""
  add = flags.add_argument_group("noise").add_argument
  add("--seed", type=int, default=0, help="images are (seed, index)")
  add(
    "--variation",
    type=float,
    metavar="SHARE",
    help="0 to 1: how far each image's noise is from that of the first",
  )
  add(
    "--rng",
    choices=("jax", "torch"),
    default="jax",
    help="whose noise; torch's makes the pictures of other programs",
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


def main(arguments: Sequence[str]) -> int:
  """Reads the flags and draws; returns the exit code."""
  flags, _ = parser().read(arguments)
  from ldm_jax.sampling import generate  # brings jax

  return generate.generate(flags)


if __name__ == "__main__":
  run_command(main)
