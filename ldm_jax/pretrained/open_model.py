"""Opens a model for sampling: a run, a diffusers folder, a file, a repository.

`open_model` reads whichever it is and applies textual inversions and LoRAs.
"""

import dataclasses
import logging
from collections.abc import Collection, Sequence
from typing import Any

from ldm_jax.data.text.clip_prompts import ClipPrompts, PromptSyntax
from ldm_jax.data.text.stored_tokenizers import t5_of
from ldm_jax.data.text.tokenizers import Tokenizer
from ldm_jax.data.transforms.layout_tokens import LayoutTokens
from ldm_jax.errors import ConfigError, config_errors
from ldm_jax.fields.arguments import check_request, checked
from ldm_jax.latent_diffusion import LatentDiffusion
from ldm_jax.latents import image_shape
from ldm_jax.loaded_model import LoadedModel
from ldm_jax.nn.conditioners.clip_embedder import ClipEmbedder
from ldm_jax.pretrained.assemble import assemble
from ldm_jax.pretrained.components import Components
from ldm_jax.pretrained.from_pretrained import find_components, with_networks
from ldm_jax.pretrained.hub.fetch import local_path
from ldm_jax.pretrained.lora.merge import merge_lora, split_scale
from ldm_jax.pretrained.quantizer import check_weight_dtype
from ldm_jax.pretrained.single_network.replace_vae import with_vae
from ldm_jax.pretrained.stacked_parameters import unstack_parameters
from ldm_jax.pretrained.text.prompt_tokens import (
  with_t5_tokenizer,
  with_tokenizer,
)
from ldm_jax.pretrained.textual_inversion import load_inversion
from ldm_jax.run import Run, class_names
from ldm_jax.runtime.devices.sharding import MeshShape, Sharding

logger = logging.getLogger(__name__)

DTYPES = ("float32", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True)
class LoadOptions:
  """How `open_model` reads a model.

  Attributes:
    dtype: of parameters and computation: "float32", "bfloat16" or "float16";
      norms, softmax and outputs stay float32.
    weight_dtype: "int8" or "float8_e4m3fn": of the matrices of denoiser and
      text encoders, with a scale for each output, while computation stays in
      `dtype` (weight-only quantization); None keeps them in `dtype`. LoRAs are
      merged and rounded again. Such a model samples, and is not saved.
    variant: of a diffusers folder's weight files, such as "fp16".
    prediction: "eps", "v", "x0" or "flow": what the denoiser of a single file
      predicts, where the file does not say; "flow" is for a SiT.
    weights: "raw" or "ema": which of the two U-Nets a single file may hold.
    config: a diffusers folder whose configs describe a single file.
    tokenizer: a folder of CLIP's tokenizer, which single files lack.
    t5_tokenizer: the same of T5's, for SD3 and FLUX.
    vae: a folder, file or repository of an autoencoder, or of a model that has
      one, in place of the model's own.
    text_encoder: folders or files of text encoders, CLIP's or T5's, which
      single files may lack.
    lora: LoRA files to merge, in this order: FILE, FILE:SCALE or (file, scale).
    embedding: files of textual inversion.
    trust: top-level packages that may be imported for classes which a run
      names as package.module:Class; see `Run.open`.

  All but the last four are for published weights; a run has its own.
  """

  dtype: str = "float32"
  weight_dtype: str | None = None
  variant: str | None = None
  prediction: str | None = None
  weights: str = "raw"
  config: str | None = None
  tokenizer: str | None = None
  t5_tokenizer: str | None = None
  vae: str | None = None
  text_encoder: Sequence[str] = ()
  lora: Sequence[str | tuple[str, float]] = ()
  embedding: Sequence[str] = ()
  trust: Collection[str] = ()

  def __post_init__(self):
    check_request(self)
    if self.dtype not in DTYPES:
      raise ConfigError(
        f"dtype={self.dtype!r} must be one of {', '.join(DTYPES)}"
      )
    check_weight_dtype(self.weight_dtype)
    if self.weights not in ("raw", "ema"):
      raise ConfigError(f"weights={self.weights!r} must be 'raw' or 'ema'")
    if self.prediction not in (None, "eps", "v", "x0", "flow"):
      raise ConfigError(
        f"prediction={self.prediction!r} must be 'eps', 'v', 'x0' or 'flow'"
      )
    for name in ("lora", "embedding", "trust", "text_encoder"):
      if isinstance(getattr(self, name), str):
        raise ConfigError(
          f"{name}={getattr(self, name)!r} must be a list, not one string"
        )

  @property
  def base(self) -> "LoadOptions":
    """The options without LoRAs and textual inversions."""
    return dataclasses.replace(self, lora=(), embedding=())

  @property
  def is_default(self) -> bool:
    """Whether no option of published weights is given."""
    own = dataclasses.replace(self.base, vae=None, trust=())
    return own == LoadOptions()


@checked
def open_model(path: str, options: LoadOptions = LoadOptions()) -> LoadedModel:
  """A model by its run folder, diffusers folder, single file or repository.

  Raises:
    ConfigError: it is none of these, or the options do not fit it.
    WeightsError: its weights, or those of a LoRA or a textual inversion, are
      missing, malformed or of another network.
  """
  with config_errors():
    loaded = _open_base(path, options.base)
    for file in options.embedding:
      loaded = load_inversion(loaded, file)
    for item in options.lora:
      file, scale = split_scale(item) if isinstance(item, str) else item
      loaded = merge_lora(loaded, file, scale=scale)
    return loaded


def _open_base(path: str, options: LoadOptions) -> LoadedModel:
  """The model without LoRAs and textual inversions."""
  path = local_path(path, variant=options.variant)
  if not Run.exists(path):
    return assemble_model(components_of(path, options), options)
  if not options.is_default:
    raise ConfigError(
      f"{path!r} is a run, which has its own number format and tokenizer; "
      "leave dtype, weight_dtype, variant, prediction, weights, config, "
      "tokenizer, t5_tokenizer and text_encoder out (--dtype, "
      "--weight_dtype, --variant, --prediction, --weights, --config, "
      "--tokenizer, --t5_tokenizer, --text_encoder)"
    )
  run = open_denoiser_run(path, options.trust)
  loaded = open_run(run, MeshShape().build())
  if options.vae is None:
    return loaded
  return with_vae(loaded, find_components(options.vae), options.vae)


def is_denoiser(task: Any) -> bool:
  """Whether a task trains a `LatentDiffusion`, so that its run can sample."""
  return isinstance(getattr(task, "model", None), LatentDiffusion)


def open_denoiser_run(folder: str, trust: Collection[str] = ()) -> Run:
  """The run of a denoiser (stage two) in `folder`.

  Args:
    trust: see `Run.open`.

  Raises:
    ConfigError: there is none.
  """
  run = Run.open(folder, trust)
  if not is_denoiser(run.experiment.task):
    raise ConfigError(
      f"{folder!r} is a run of {type(run.experiment.task).__name__}, which "
      "cannot sample; give the run of a denoiser (stage two)"
    )
  return run


def open_run(run: Run, sharding: Sharding) -> LoadedModel:
  """A denoiser's run as a model, its averaged parameters on the devices."""
  task = run.experiment.task
  _, height, width, _ = image_shape(task.first_stage, run.batch)
  transforms = run.experiment.data.transforms
  params = task.parameters(run.trained(sharding), run.frozen(sharding))
  return LoadedModel(
    model=task.model,
    params=unstack_parameters(params),
    tokenizer=run_tokenizer(task.model, run.tokenizer),
    t5_tokenizer=t5_of(run.tokenizer),
    height=height,
    width=width,
    layout=next((t for t in transforms if isinstance(t, LayoutTokens)), None),
    classes=class_names(run.folder),
  )


def run_tokenizer(
  model: LatentDiffusion, tokenizer: Tokenizer | None
) -> Tokenizer | ClipPrompts | None:
  """A run's tokenizer, which pads and cuts as its text encoder needs."""
  for conditioner in model.conditioners:
    if isinstance(conditioner, ClipEmbedder):
      syntaxes = [PromptSyntax(tokenizer, i) for i in conditioner.paddings]
      return ClipPrompts(tuple(syntaxes), conditioner.max_chunks)
  return tokenizer


def components_of(
  path: str, options: LoadOptions, subfolder: str | None = None
) -> Components:
  """The networks of published weights; their tensors are not read yet.

  Raises:
    ConfigError, WeightsError: as `open_model`.
  """
  found = find_components(
    path,
    subfolder=subfolder,
    variant=options.variant,
    prediction=options.prediction,
    weights=options.weights,
    config=options.config,
  )
  return with_networks(
    found, vae=options.vae, text_encoder=options.text_encoder
  )


def assemble_model(
  components: Components, options: LoadOptions, *, is_lazy: bool = False
) -> LoadedModel:
  """A model from the networks of published weights; logs its warnings.

  Raises:
    ConfigError, WeightsError: as `open_model`.
  """
  dtype = None if is_lazy else options.dtype
  loaded = assemble(components, dtype, options.weight_dtype)
  for warning in loaded.warnings:
    logger.warning(f"{warning}")
  if options.tokenizer is not None:
    loaded = with_tokenizer(loaded, options.tokenizer)
  if options.t5_tokenizer is not None:
    loaded = with_t5_tokenizer(loaded, options.t5_tokenizer)
  return loaded
