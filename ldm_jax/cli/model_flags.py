"""Flags of the commands that open a model, and the options they stand for."""

import argparse
from collections.abc import Collection
from typing import TYPE_CHECKING

from ldm_jax.cli.parser import Parser

if TYPE_CHECKING:
  from ldm_jax.pretrained.open_model import LoadOptions


def add_loading(flags: Parser) -> None:
  """How published weights are read; see `pretrained.open_model.LoadOptions`."""
  add = flags.add_argument_group("published weights").add_argument
  add("--variant", help="of a diffusers folder's weight files, such as fp16")
  add(
    "--prediction",
    choices=("eps", "v", "x0"),
    help="what the U-Net predicts, where a single file does not say",
  )
  add(
    "--weights",
    choices=("raw", "ema"),
    default="raw",
    help="which of a single file's two U-Nets (default raw)",
  )
  add("--config", metavar="FOLDER", help="diffusers' configs of a single file")
  add("--tokenizer", metavar="FOLDER", help="CLIP's, for single files")
  add(
    "--trust",
    action="append",
    metavar="PACKAGE",
    help="import this package's classes if a run names them; may be repeated",
  )


def add_control(flags: Parser) -> None:
  """A ControlNet, and a classifier for guidance."""
  add = flags.add_argument_group("ControlNet").add_argument
  add("--controlnet", metavar="FOLDER", help="of a ControlNetModel")
  add("--control_image", metavar="FILE", help="its input: edges, depth, ...")
  add("--control_scale", type=float, default=1.0, help="default 1")
  add(
    "--control_interval",
    type=float,
    nargs=2,
    default=(0.0, 1.0),
    metavar=("START", "END"),
    help="fractions of the sampling steps where it applies (default 0 1)",
  )
  add = flags.add_argument_group("classifier guidance").add_argument
  add(
    "--classifier",
    metavar="RUN",
    help="a run of a classifier of noisy latents, guiding to --class_label",
  )
  add("--classifier_scale", type=float, default=1.0, help="default 1")


def add_adapters(flags: Parser) -> None:
  """LoRAs and textual inversions."""
  add = flags.add_argument_group("adapters").add_argument
  add(
    "--lora",
    action="append",
    metavar="FILE[:SCALE]",
    help="a LoRA to merge at a scale (default 1); may be repeated",
  )
  add(
    "--embedding",
    action="append",
    metavar="FILE",
    help="a textual inversion; may be repeated",
  )


def load_options(
  flags: argparse.Namespace, ignored: Collection[str] = ()
) -> "LoadOptions":
  """The options that parsed flags give, of those that a command has.

  Args:
    ignored: flags of the command that have another meaning there.
  """
  import dataclasses

  from ldm_jax.pretrained.open_model import LoadOptions  # imports jax

  names = {field.name for field in dataclasses.fields(LoadOptions)}
  given = {k: v for k, v in vars(flags).items() if k in names - set(ignored)}
  return LoadOptions(**{k: v for k, v in given.items() if v is not None})
