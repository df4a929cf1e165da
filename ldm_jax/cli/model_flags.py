"""The flags of every command that reads Stable Diffusion's weights."""

from ldm_jax.cli.parser import Parser


def add_reading(flags: Parser) -> None:
  """How foreign weights are read; see `pretrained.open_model.LoadOptions`."""
  add = flags.add_argument_group("Stable Diffusion's weights").add_argument
  add("--variant", help="of a folder's weights, such as fp16")
  add(
    "--prediction",
    choices=("eps", "v", "x0"),
    help="what the U-Net answers, where a single file does not say",
  )
  add(
    "--weights",
    choices=("raw", "ema"),
    default="raw",
    help="which of a single file's two U-Nets (default raw)",
  )
  add("--config", metavar="FOLDER", help="diffusers' configs of a single file")
  add("--tokenizer", metavar="FOLDER", help="CLIP's, for single files")


def add_control(flags: Parser) -> None:
  """A ControlNet, and a classifier."""
  add = flags.add_argument_group("ControlNet").add_argument
  add("--controlnet", metavar="FOLDER", help="of a ControlNetModel")
  add("--control_image", metavar="FILE", help="what it reads: edges, depth")
  add("--control_scale", type=float, default=1.0, help="default 1")
  add(
    "--control_interval",
    type=float,
    nargs=2,
    default=(0.0, 1.0),
    metavar=("FROM", "TO"),
    help="shares of the noise's time in which it speaks (default 0 1)",
  )
  add = flags.add_argument_group("classifier guidance").add_argument
  add(
    "--classifier",
    metavar="RUN",
    help="a run of a classifier of noisy latents; it leads to --class_label",
  )
  add("--classifier_scale", type=float, default=1.0, help="default 1")


def add_adapters(flags: Parser) -> None:
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
