"""Converts a model between runs, diffusers folders and single files.

  python -m ldm_jax.cli.convert SRC DST [--dtype fp16] [--single_file]

SRC is a run, a diffusers folder (or one network's), a single file, or
owner/model of the hub. DST becomes a folder that diffusers loads as it is, or
with --single_file a .safetensors with the names of CompVis and Stability.
"""

from collections.abc import Sequence

from ldm_jax.cli.exit_codes import run_command
from ldm_jax.cli.model_flags import add_reading
from ldm_jax.cli.parser import Parser


def parser() -> Parser:
  """The flags of convert."""
  flags = Parser("python -m ldm_jax.cli.convert", __doc__)
  add = flags.add_argument
  add("source", metavar="SRC", help="what is read")
  add("target", metavar="DST", help="what is written; must not be there yet")
  add(
    "--dtype",
    choices=("fp32", "fp16", "bf16"),
    default="fp32",
    help="of the tensors written (default fp32)",
  )
  add(
    "--single_file",
    action="store_true",
    help="write one .safetensors instead of a folder",
  )
  add(
    "--lora",
    choices=("kohya", "peft"),
    help="SRC is a run of a LoRA: write its factors alone, in this form",
  )
  add("--subfolder", help="one network of SRC: vae, unet, text_encoder")
  add(
    "--shard_gigabytes",
    type=float,
    default=10.0,
    metavar="N",
    help="cut weights into shards above this size (default 10)",
  )
  add_reading(flags)
  return flags


def main(arguments: Sequence[str]) -> int:
  """Reads the flags and converts; returns the exit code."""
  flags, _ = parser().read(arguments)
  from ldm_jax.pretrained import convert  # brings jax

  return convert.convert(flags)


if __name__ == "__main__":
  run_command(main)
