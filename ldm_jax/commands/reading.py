"""The flags of every command that reads Stable Diffusion's weights."""

from ldm_jax.commands.doors import Parser


def add_reading(flags: Parser) -> None:
  """How foreign weights are read; see `ldm_jax.commands.models.Reading`."""
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
