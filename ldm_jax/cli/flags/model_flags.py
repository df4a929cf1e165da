"""Flags for reading a model and for merging adapters into it."""

import dataclasses
from collections.abc import Collection
from typing import Any

from ldm_jax.cli.flags.flag_notation import add_flags
from ldm_jax.cli.flags.parser import Parser

LOADING = """
--variant: text
  of a folder's weights, such as fp16
--prediction: eps|v|x0|flow
  what the denoiser predicts, where a single file does not specify it
--weights: raw|ema
  which of a single file's two U-Nets (default raw)
--config: FOLDER
  diffusers' configs of a single file
--tokenizer: FOLDER
  CLIP's, for single files
--t5_tokenizer: FOLDER
  T5's, for single files of SD3 and FLUX
--vae: PATH
  an autoencoder in place of the model's own (folder or file; TAESD, DC-AE)
--text_encoder: FOLDER+
  a text encoder that a single file lacks; SDXL has two CLIPs, FLUX CLIP and T5
--trust: PACKAGE+
  import this package's classes if a run names them; repeat it for several
"""
PRECISION = """
--dtype: float32|bfloat16
  of published parameters and of computation (default float32)
"""
STORAGE = """
--weight_dtype: int8|float8_e4m3fn
  keep published matrices in 8 bits, and compute in --dtype
"""
ADAPTERS = """
--lora: FILE[:SCALE]+
  a LoRA to merge, SCALE times (default 1); repeat it for several
--embedding: FILE+
  a textual inversion; repeat it for several
"""
PROMPT_ADAPTERS = """
--lora_folder: FOLDER
  of the .safetensors files that prompts name as <lora:NAME:0.8>
"""


def add_reading(parser: Parser) -> None:
  """Adds the flags for reading weights; see `open_model.LoadOptions`."""
  add_flags(parser, "published weights", LOADING)


def add_storage(parser: Parser, has_dtype: bool = False) -> None:
  """Adds the flags of the formats that a model is kept and computed in.

  Args:
    has_dtype: whether the command has the flag --dtype already.
  """
  add_flags(
    parser,
    "number formats",
    STORAGE if has_dtype else PRECISION + STORAGE.lstrip(),
  )


def add_adapters(parser: Parser, has_prompts: bool = False) -> None:
  """Adds the flags of adapters that are merged into a model.

  Args:
    has_prompts: of the command, which may then name LoRAs.
  """
  more = PROMPT_ADAPTERS if has_prompts else ""
  add_flags(parser, "adapters", ADAPTERS + more.lstrip())


def load_options(flags: Any, ignored: Collection[str] = ()) -> Any:
  """The `LoadOptions` of flags; not every command has all of them.

  Args:
    ignored: flags of the command that have another meaning there.
  """
  from ldm_jax.pretrained.open_model import LoadOptions

  names = {field.name for field in dataclasses.fields(LoadOptions)}
  names -= set(ignored)
  given = {
    name: value
    for name, value in vars(flags).items()
    if name in names and value is not None
  }
  return LoadOptions(**given)
