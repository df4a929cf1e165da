"""What --model may name: a run, or a model of Stable Diffusion's kind."""

import argparse
import dataclasses
import logging
from collections.abc import Sequence

from ldm_jax.data.text.clip_prompts import ClipPrompts, PromptSyntax
from ldm_jax.data.text.tokenizers import Tokenizer
from ldm_jax.data.transforms.layout_tokens import LayoutTokens
from ldm_jax.errors import ConfigError
from ldm_jax.latents import image_shape
from ldm_jax.loaded_model import LoadedModel
from ldm_jax.nn.conditioners.clip_embedder import ClipEmbedder
from ldm_jax.pretrained import loading
from ldm_jax.pretrained.assemble import assemble
from ldm_jax.pretrained.components import Components
from ldm_jax.pretrained.configs.unet_reader import CONTROL
from ldm_jax.pretrained.lora.merge import merge_lora
from ldm_jax.pretrained.networks import class_of, load
from ldm_jax.pretrained.textual_inversion import load_inversion
from ldm_jax.run import Run
from ldm_jax.runtime.devices.sharding import MeshShape, Sharding
from ldm_jax.training.denoiser import DenoiserTask

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class LoadOptions:
  """How a model is to be read; see pretrained/loading.py.

  Attributes:
    lora: files of LoRAs to merge, each with :SCALE behind it or without.
    embedding: files of textual inversion.
  """

  dtype: str = "float32"
  variant: str | None = None
  prediction: str | None = None
  weights: str = "raw"
  config: str | None = None
  tokenizer: str | None = None
  lora: Sequence[str] = ()
  embedding: Sequence[str] = ()

  @classmethod
  def told(cls, flags: argparse.Namespace) -> "LoadOptions":
    """What a command's flags say of it; not every command has all of them."""
    names = {field.name for field in dataclasses.fields(cls)}
    return cls(
      **{
        name: value
        for name, value in vars(flags).items()
        if name in names and value is not None
      }
    )


def open_denoising(folder: str) -> Run:
  """The run of stage two in `folder`.

  Raises:
    ConfigError: if it is none.
  """
  run = Run.open(folder)
  if not isinstance(run.experiment.task, DenoiserTask):
    raise ConfigError(
      f"{folder!r} is a run of stage one, which reconstructs but cannot draw; "
      "give --model a run of stage two"
    )
  return run


def open_run(run: Run, sharding: Sharding) -> LoadedModel:
  """A run's model with its averaged parameters, on the devices."""
  task = run.experiment.task
  _, height, width, _ = image_shape(task.first_stage, run.batch)
  transforms = run.experiment.data.transforms
  return LoadedModel(
    model=task.model,
    params=task.parameters(run.trained(sharding), run.frozen(sharding)),
    tokenizer=_words(run),
    height=height,
    width=width,
    layout=next((v for v in transforms if isinstance(v, LayoutTokens)), None),
  )


def _words(run: Run) -> Tokenizer | ClipPrompts | None:
  """The run's tokenizer, as what it was trained on listens to it."""
  words = run.tokenizer
  for part in run.experiment.task.model.conditioners:
    if isinstance(part, ClipEmbedder):
      return ClipPrompts((PromptSyntax(words, part.paddings[0]),))
  return words


def open_model(path: str, reading: LoadOptions = LoadOptions()) -> LoadedModel:
  """A model by the name of its run, folder, file or repository.

  Raises:
    ConfigError: it is none of these.
    WeightsError: its weights, or those of an adapter, are not what they should
      be.
  """
  plain = dataclasses.replace(reading, lora=(), embedding=())
  opened = _open(path, plain)
  for file in reading.embedding:
    opened = load_inversion(opened, file)
  for text in reading.lora:
    file, scale = split_scale(text)
    opened = merge_lora(opened, file, scale=scale)
  return opened


def with_control(
  opened: LoadedModel, path: str, dtype: str | None
) -> LoadedModel:
  """The model with a ControlNet, of diffusers' layout, beside its U-Net.

  Raises:
    ConfigError: there is none, or it was made for another U-Net.
    WeightsError: its weights are not what they should be.
  """
  found = find_components(path, LoadOptions())
  if found.lone is None or class_of(found.lone.config) != CONTROL:
    raise ConfigError(
      f"--controlnet {path!r} must be the folder of one ControlNetModel of "
      "diffusers"
    )
  control, variables = load(found.lone, dtype or "float32")
  unet = opened.model.unet
  ours, needed = (
    (net.channels, net.multipliers, net.blocks, net.attention.depths)
    for net in (control, unet)
  )
  if ours != needed:
    raise ConfigError(
      f"--controlnet {path!r} was made for another U-Net: widths, levels, "
      f"blocks and depths {ours}; the model has {needed}"
    )
  return dataclasses.replace(
    opened,
    model=dataclasses.replace(opened.model, control=control),
    params=opened.params.replace(control=variables),
  )


def _open(path: str, reading: LoadOptions) -> LoadedModel:
  """The model without adapters."""
  if Run.exists(path):
    if reading != LoadOptions():
      raise ConfigError(
        f"{path!r} is a run of ours, whose formats and words are its own; "
        "leave --dtype, --variant, --prediction, --weights, --config and "
        "--tokenizer out"
      )
    return open_run(open_denoising(path), MeshShape().build())
  return assemble_model(find_components(path, reading), reading)


def find_components(
  path: str, reading: LoadOptions, subfolder: str | None = None
) -> Components:
  """The networks of a foreign model, not read yet.

  Raises:
    ConfigError, WeightsError: as `open_model`.
  """
  return loading.find(
    path,
    subfolder=subfolder,
    variant=reading.variant,
    prediction=reading.prediction,
    weights=reading.weights,
    config=reading.config,
  )


def assemble_model(found: Components, reading: LoadOptions) -> LoadedModel:
  """A foreign model from its networks.

  Raises:
    ConfigError, WeightsError: as `open_model`.
  """
  opened = assemble(found, reading.dtype)
  for notice in opened.notices:
    logger.warning(f"{notice}")
  tokenizer = reading.tokenizer
  return loading.with_tokenizer(opened, tokenizer) if tokenizer else opened


def split_scale(text: str) -> tuple[str, float]:
  """FILE:SCALE in two; without a number behind the last colon it is 1.

  A colon may be part of a name, as that of a drive.
  """
  file, _, number = text.rpartition(":")
  try:
    return file, float(number)
  except ValueError:
    return text, 1.0
