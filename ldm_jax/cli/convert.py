"""Converts a model between runs, diffusers folders and single files.

  ldm-jax convert SOURCE TARGET [--dtype fp16] [--single_file]

SOURCE is a run, a diffusers folder (or one network's), a single file, or
owner/model of the hub. TARGET becomes a folder that diffusers loads as it is,
or with --single_file a .safetensors with the names of CompVis and Stability.
"""

from collections.abc import Sequence

from ldm_jax.cli.exit_codes import command, run_command
from ldm_jax.cli.flags.model_flags import add_reading, load_options
from ldm_jax.cli.flags.parser import Parser


def parser() -> Parser:
  """The flags of convert."""
  flags = Parser("ldm-jax convert", __doc__)
  add = flags.add_argument
  add("source", metavar="SOURCE", help="the model to read")
  add("target", metavar="TARGET", help="the path to write; must not exist")
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
    help="SOURCE is a LoRA run: write its factors alone, in this format",
  )
  add("--subfolder", help="one network: vae, unet, text_encoder")
  add(
    "--shard_gigabytes",
    type=float,
    default=10.0,
    metavar="N",
    help="largest size of one file of weights (default 10)",
  )
  add(
    "--latent_scale",
    type=float,
    metavar="X",
    help="of the run of an autoencoder (default: measured on its images)",
  )
  add_reading(flags)
  return flags


@command
def main(arguments: Sequence[str]) -> int:
  """Converts a model and prints the path; returns the exit code."""
  flags, _ = parser().read(arguments)
  from ldm_jax.pretrained.convert import ConvertRequest, convert  # imports jax

  request = ConvertRequest(
    source=flags.source,
    target=flags.target,
    dtype=flags.dtype,
    single_file=flags.single_file,
    lora=flags.lora,
    subfolder=flags.subfolder,
    shard_gigabytes=flags.shard_gigabytes,
    latent_scale=flags.latent_scale,
    options=load_options(flags, ignored=("dtype", "lora")),
  )
  print(convert(request).path)
  return 0


if __name__ == "__main__":
  run_command(main)
