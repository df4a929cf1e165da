"""Converts models between runs, diffusers folders and single files."""

import dataclasses
import logging
import math
import os
from typing import Any, Literal, get_args

import jax
import numpy as np

from ldm_jax.errors import ConfigError, config_errors
from ldm_jax.fields.arguments import check_request, checked
from ldm_jax.files.file_lock import lock_output
from ldm_jax.latents import known_latent_scale
from ldm_jax.loaded_model import LoadedModel
from ldm_jax.nn.dit.dit import DiT
from ldm_jax.pretrained.hub.fetch import local_path
from ldm_jax.pretrained.lora.export import LoraFormat, save_lora
from ldm_jax.pretrained.networks import load_lazily
from ldm_jax.pretrained.open_model import (
  LoadOptions,
  assemble_model,
  components_of,
  open_denoiser_run,
  open_model,
  open_run,
)
from ldm_jax.pretrained.save_pretrained import (
  DTYPES,
  save_pretrained,
  save_single_file,
)
from ldm_jax.pretrained.single_network.own_autoencoder import (
  measured_scale,
  trained_size,
)
from ldm_jax.run import Run, is_autoencoder
from ldm_jax.runtime.devices.sharding import MeshShape

logger = logging.getLogger(__name__)

Format = Literal["diffusers", "single_file", "lora"]


@dataclasses.dataclass(frozen=True)
class ConvertRequest:
  """What `convert` reads and writes.

  Attributes:
    source: a run folder, a diffusers folder (or one network's), a single file,
      or owner/model of the hub.
    target: the path to write; must not exist.
    dtype: of the tensors written: "fp32", "fp16" or "bf16".
    single_file: write one .safetensors with CompVis's names instead of a
      diffusers folder.
    lora: "kohya" or "peft": write the factors of a LoRA that the run `source`
      trained, alone, in this format.
    subfolder: one network of `source`: "vae", "unet", "text_encoder".
    shard_gigabytes: largest size of one file of weights in a folder, above 0.
    latent_scale: of the run of an autoencoder, what its latents are to be
      multiplied by; None measures 1 / std on the run's training images.
    options: how published weights are read; its dtype is not used, and LoRAs
      and textual inversions are not merged here.
  """

  source: str
  target: str
  dtype: str = "fp32"
  single_file: bool = False
  lora: str | None = None
  subfolder: str | None = None
  shard_gigabytes: float = 10.0
  latent_scale: float | None = None
  options: LoadOptions = LoadOptions()

  def __post_init__(self):
    check_request(self)
    if self.dtype not in DTYPES:
      raise ConfigError(
        f"dtype={self.dtype!r} must be one of {', '.join(DTYPES)}"
      )
    if self.lora not in (None, *get_args(LoraFormat)):
      raise ConfigError(
        f"lora={self.lora!r} must be one of {', '.join(get_args(LoraFormat))}"
      )
    if not 0 < self.shard_gigabytes < math.inf:
      raise ConfigError(
        f"shard_gigabytes must be above 0, got {self.shard_gigabytes} "
        "(--shard_gigabytes)"
      )
    scale = self.latent_scale
    if scale is not None and not 0 < scale < math.inf:
      raise ConfigError(
        f"latent_scale must be above 0, got {scale} (--latent_scale)"
      )
    if self.options != self.options.base:
      raise ConfigError(
        "convert merges no LoRAs or textual inversions; open the model with "
        "them and write it with save_pretrained"
      )
    if self.options.weight_dtype is not None:
      raise ConfigError(
        f"convert writes {', '.join(DTYPES)}, not "
        f"weight_dtype={self.options.weight_dtype!r}; leave it out"
      )


@dataclasses.dataclass(frozen=True)
class ConvertResult:
  """What `convert` wrote.

  Attributes:
    path: the request's `target`.
    format: of what is there: "diffusers" (a folder), "single_file" or "lora".
  """

  path: str
  format: Format


@dataclasses.dataclass(frozen=True)
class _Source:
  """A module with its parameters, and the model if it is a whole one."""

  module: Any
  params: Any
  loaded: LoadedModel | None = None
  image_size: int = 512
  latent_scale: float | None = None


@checked
def convert(request: ConvertRequest) -> ConvertResult:
  """Reads a model and writes it in another form, completely or not at all.

  Raises:
    ConfigError: the request does not fit the source, or the target's format
      cannot hold a part of the model, which is named.
    WeightsError: the source's weights are missing, malformed or of another
      network.
    OSError: the target cannot be written.
  """
  with lock_output(request.target), config_errors():
    if os.path.lexists(request.target):
      raise ConfigError(
        f"{request.target} exists already; choose another target"
      )
    options = {"subfolder": request.subfolder}
    options["variant"] = request.options.variant
    source = local_path(request.source, **options)
    request = dataclasses.replace(request, source=source)
    if request.lora:
      _convert_lora(request)
      return ConvertResult(request.target, "lora")
    _write(request, _read(request))
  form = "single_file" if request.single_file else "diffusers"
  return ConvertResult(request.target, form)


def _convert_lora(request: ConvertRequest) -> None:
  """Writes the factors of a run's LoRA as one file."""
  run = open_denoiser_run(request.source, request.options.trust)
  task = run.experiment.task
  if task.lora is None:
    raise ConfigError(
      f"{request.source!r} trained whole matrices, not a LoRA; leave lora out "
      "(--lora)"
    )
  sharding = MeshShape().build()
  factors = jax.tree.map(np.asarray, run.trained(sharding))
  loaded = open_run(run, sharding)
  save_lora(loaded, task.lora, factors, request.target, request.lora)


def _read(request: ConvertRequest) -> _Source:
  options = dataclasses.replace(request.options, dtype="float32")
  if Run.exists(request.source):
    if request.subfolder:
      raise ConfigError(
        f"{request.source!r} is a run, without subfolders; leave subfolder out"
      )
    return _read_run(request, options)
  if request.latent_scale is not None:
    raise ConfigError(
      f"{request.source!r} says what its latents are multiplied by; leave "
      "latent_scale out (--latent_scale)"
    )
  components = components_of(request.source, options, request.subfolder)
  if components.single is None:
    return _of_model(assemble_model(components, options, is_lazy=True))
  if options.tokenizer or options.t5_tokenizer:
    raise ConfigError(
      "a single network has no tokenizer; leave tokenizer and t5_tokenizer out "
      "(--tokenizer, --t5_tokenizer)"
    )
  return _Source(*load_lazily(components.single))


def _of_model(loaded: LoadedModel) -> _Source:
  return _Source(loaded.model, loaded.params, loaded, loaded.height)


def _read_run(request: ConvertRequest, options: LoadOptions) -> _Source:
  """The autoencoder of a first stage's run, or the model of a denoiser's."""
  run = Run.open(request.source, options.trust)
  task, scale = run.experiment.task, request.latent_scale
  if is_autoencoder(task) and options.is_default:
    if options.vae is not None:
      raise ConfigError(
        f"{request.source!r} is the run of an autoencoder; leave vae "
        "out (--vae)"
      )
    params = run.trained(MeshShape().build())
    if scale is None:
      scale = known_latent_scale(task)
    if scale is None:
      scale = measured_scale(run, params)
      logger.info(f"the measured 1 / std of the latents is {scale:.5f}")
    size = trained_size(run)
    return _Source(task.autoencoder, params, None, size, scale)
  if scale is not None:
    raise ConfigError(
      f"{request.source!r} knows the scale of its latents; leave latent_scale "
      "out (--latent_scale)"
    )
  return _of_model(open_model(request.source, options))


def _write(request: ConvertRequest, source: _Source) -> None:
  params = source.params
  loaded, dtype = source.loaded, request.dtype
  if request.single_file:
    if loaded is not None and loaded.tokenizer is not None:
      logger.warning("a single file holds no tokenizer")
    save_single_file(
      source.module,
      params,
      request.target,
      dtype=dtype,
      image_size=source.image_size,
      latent_scale=source.latent_scale,
      scheduler=None if loaded is None else loaded.scheduler,
    )
    return
  save_pretrained(
    source.module,
    params,
    request.target,
    dtype=dtype,
    max_shard_bytes=int(request.shard_gigabytes * 2**30),
    tokenizer=None if loaded is None else loaded.tokenizer,
    image_size=source.image_size,
    latent_scale=source.latent_scale,
    scheduler=None if loaded is None else loaded.scheduler,
    classes=_class_names(loaded),
    t5_tokenizer=None if loaded is None else loaded.t5_tokenizer,
  )


def _class_names(loaded: LoadedModel | None) -> tuple[str, ...]:
  """The names that the folder can hold."""
  is_dit = loaded is not None and isinstance(loaded.model.unet, DiT)
  return loaded.classes if is_dit else ()
