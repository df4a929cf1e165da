"""Assembles published networks into a `LatentDiffusion` with its parameters.

How each family of Stable Diffusion uses its text encoders is defined here.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike

from ldm_jax.data.text import tokenizers
from ldm_jax.data.text.clip_prompts import ClipPrompts, PromptSyntax
from ldm_jax.data.text.tokenizers import Tokenizer
from ldm_jax.diffusion.schedule import Schedule
from ldm_jax.errors import ConfigError
from ldm_jax.latent_diffusion import LatentDiffusion, Parameters
from ldm_jax.loaded_model import LoadedModel
from ldm_jax.nn.conditioners.clip_embedder import ClipEmbedder
from ldm_jax.nn.conditioners.conditioner import Conditioner
from ldm_jax.nn.conditioners.embedders import (
  ClassEmbedder,
  SizeEmbedder,
  TextEmbedder,
)
from ldm_jax.nn.conditioners.spatial import LowResolution
from ldm_jax.nn.encoders.clip_text import ClipText
from ldm_jax.pretrained.components import Components
from ldm_jax.pretrained.conditioner_variables import conditioner_variables
from ldm_jax.pretrained.configs import scheduler_config, unet_reader
from ldm_jax.pretrained.configs.concat_inputs import concat_conditioners
from ldm_jax.pretrained.configs.encoder_keys import unread_encoder_keys
from ldm_jax.pretrained.dit.sampling_defaults import (
  class_names,
  default_guidance,
  denoiser_inputs,
  sampling_defaults,
)
from ldm_jax.pretrained.dit.tensors import check_copies
from ldm_jax.pretrained.networks import Module, latent_scale, load, load_lazily

_BERT_EMPTY = (101, 102)  # [CLS] [SEP] of bert-base-uncased
_OPEN_CLIP_PADDING = 0
_CLIP_PADDING = 49407


def assemble(
  components: Components, dtype: DTypeLike | None = "float32"
) -> LoadedModel:
  """Reads all networks and assembles the model.

  Args:
    dtype: None leaves every parameter in its file, as a `LazyTensor`.

  Raises:
    ConfigError: a component is missing, or a config asks for something that is
      not supported.
    WeightsError: a network's tensors do not fit its config.
  """
  _check_complete(components)
  check_copies(components.networks["unet"])
  networks = {
    name: load_lazily(network) if dtype is None else load(network, dtype)
    for name, network in components.networks.items()
  }
  first_stage, first_params = networks.pop("vae")
  unet, unet_params = networks.pop("unet")
  scale = latent_scale(components.networks["vae"].config)
  inputs = _unet_inputs(components)
  defaults = sampling_defaults(unet, components.scheduler)
  tokenizer = tokenizer_of(components)
  conditioners = conditioners_of(components, networks, tokenizer)
  conditioners += concat_conditioners(
    components.index, inputs, first_stage.latent_channels, first_stage.stride
  )
  model = LatentDiffusion(
    first_stage,
    unet,
    tuple(conditioners),
    defaults.schedule,
    defaults.prediction,
    noise_augmentation_schedule=_noise_augmentation(components, conditioners),
  )
  side = (inputs.size or 64) * first_stage.stride
  return LoadedModel(
    model=model,
    params=Parameters(
      first_params,
      jnp.float32(scale),
      conditioner_variables(conditioners, networks),
      unet_params,
    ),
    tokenizer=tokenizer,
    height=side,
    width=side,
    guidance=default_guidance(unet, inputs),
    sampler_config=defaults.sampler,
    scheduler=components.scheduler,
    unet_channels=inputs.channels,
    classes=class_names(components.index, conditioners),
    warnings=_index_and_encoder_warnings(components) + defaults.warnings,
  )


def _index_and_encoder_warnings(components: Components) -> tuple[str, ...]:
  warnings = components.warnings
  for name, network in components.networks.items():
    warnings += unread_encoder_keys(name, network.kind, network.config)
  return warnings


def _check_complete(components: Components) -> None:
  """Raises ConfigError for a missing U-Net or autoencoder."""
  listed = ", ".join(components.networks)
  if "unet" not in components.networks:
    raise ConfigError(
      f"the model has no unet; it has {listed}. A single network is loaded by "
      "giving its subfolder"
    )
  if "vae" not in components.networks:
    raise ConfigError(
      f"the model has no autoencoder; it has {listed}: give one with vae=PATH "
      "(--vae), a folder or a file"
    )
  context = _unet_inputs(components).context
  if context is not None and set(components.networks) == {"unet", "vae"}:
    raise ConfigError(
      f"the U-Net reads {context} features of text, and the model has no text "
      "encoder; give one with text_encoder=[FOLDER] (--text_encoder), and "
      "tokenizer=FOLDER (--tokenizer)"
    )


def _noise_augmentation(
  components: Components, conditioners: list[Conditioner]
) -> Schedule | None:
  """The schedule of noise on an upscaler's low-resolution image."""
  if not any(isinstance(c, LowResolution) for c in conditioners):
    return None
  if components.low_res_scheduler is None:
    return Schedule()
  return scheduler_config.schedule(components.low_res_scheduler)[0]


def _unet_inputs(components: Components) -> unet_reader.Inputs:
  unet = components.networks["unet"]
  return denoiser_inputs(unet.config, unet.kind)


def conditioners_of(
  components: Components,
  networks: dict[str, tuple[Module, Any]],
  tokenizer: Tokenizer | ClipPrompts | None,
) -> list[Conditioner]:
  """The conditioners of the model's family.

  Raises:
    ConfigError: the text encoders are not those of a known family.
  """
  modules = {name: module for name, (module, _) in networks.items()}
  if not modules:
    return []
  first = next(iter(modules.values()))
  if isinstance(first, ClassEmbedder):
    return [first]
  if not isinstance(first, ClipText):
    text = {"empty": _BERT_EMPTY, "padding": 0}
    return [TextEmbedder(first, **text)]
  encoders = tuple(modules.values())
  embedder = ClipEmbedder(
    encoders, (0,) * len(encoders), paddings(components, tokenizer)
  )
  embedder = _with_special_tokens(embedder, tokenizer)
  inputs = _unet_inputs(components)
  if inputs.sinusoids is None:
    if len(encoders) > 1:
      raise ConfigError("two text encoders, but a U-Net without a vector")
    return [embedder]
  return _sdxl_conditioners(components, embedder)


def _sdxl_conditioners(
  components: Components, embedder: ClipEmbedder
) -> list[Conditioner]:
  """SDXL's text embedder and sizes  (Podell et al. 2023, section 2.2).

  Tokens are the states before the last block and norm; the vector is the last
  encoder's.
  """
  inputs, encoders = _unet_inputs(components), embedder.encoders
  pooled = encoders[-1].projection
  count = (inputs.vector - (pooled or 0)) // inputs.sinusoids
  needed = "text_encoder" if pooled else "text_encoder_2"
  widths = sum(encoder.width for encoder in encoders)
  if pooled is None or inputs.context != widths:
    raise ConfigError(
      f"a U-Net that reads {inputs.context} features of text, but "
      f"{' and '.join(n for n in components.networks if 'text' in n)} of "
      f"{widths}; give {needed} with text_encoder=[FOLDER] (--text_encoder)"
    )
  is_zeros = components.index.get(
    "force_zeros_for_empty_prompt", len(encoders) > 1
  )
  if count not in (5, 6):
    raise ConfigError(
      f"a vector of {inputs.vector} features is not a pooled text of {pooled} "
      f"and 5 or 6 numbers of {inputs.sinusoids}"
    )
  embedder = embedder.clone(
    skips=(1,) * len(encoders),
    is_normed=False,
    is_pooled=True,
    null="zeros" if is_zeros else "empty",
  )
  ends_with = "target" if count == 6 else "score"
  return [embedder, SizeEmbedder(ends_with, inputs.sinusoids)]


def _with_special_tokens(
  embedder: ClipEmbedder, tokenizer: Tokenizer | ClipPrompts | None
) -> ClipEmbedder:
  """The embedder with the begin and end tokens of its own tokenizer."""
  if not isinstance(tokenizer, ClipPrompts):
    return embedder
  first = tokenizer.syntaxes[0].tokenizer.backend
  return embedder.clone(begin=first.bos_token_id, end=first.eos_token_id)


def paddings(
  components: Components, tokenizer: Tokenizer | ClipPrompts | None
) -> tuple[int, ...]:
  """The padding token of each text encoder."""
  if isinstance(tokenizer, ClipPrompts):
    return tuple(syntax.padding for syntax in tokenizer.syntaxes)
  names = ("text_encoder", "text_encoder_2")
  return tuple(
    _padding(components, name) for name in names if name in components.networks
  )


def _padding(components: Components, name: str) -> int:
  """OpenCLIP's text encoders are those with the exact gelu."""
  is_open = components.networks[name].config.get("hidden_act") == "gelu"
  return _OPEN_CLIP_PADDING if is_open else _CLIP_PADDING


def tokenizer_of(components: Components) -> Tokenizer | ClipPrompts | None:
  """The tokenizers of the text encoders, if the folder has them.

  Raises:
    ConfigError: there is one, but it has no vocabulary or is unreadable.
  """
  if not components.tokenizers:
    return None
  syntaxes = []
  for name, folder in components.tokenizers.items():
    network = components.networks[name]
    length = network.config.get("max_position_embeddings", 77)
    tokenizer = tokenizers.load(folder, length)
    if network.kind == "text":
      return tokenizer
    padding = tokenizer.backend.pad_token_id
    if padding is None:
      padding = _padding(components, name)
    syntaxes.append(PromptSyntax(tokenizer, padding))
  return ClipPrompts(tuple(syntaxes))


def with_tokenizer(loaded: LoadedModel, folder: str) -> LoadedModel:
  """The model with a tokenizer from a folder, which single files lack.

  Raises:
    ConfigError: the model has no CLIP text encoder.
    ValueError: the folder has no tokenizer.
  """
  model = loaded.model
  embedder = next(
    (c for c in model.conditioners if isinstance(c, ClipEmbedder)), None
  )
  if embedder is None:
    raise ConfigError(
      "the model has no CLIP text encoder; leave tokenizer out (--tokenizer)"
    )
  tokenizer = tokenizers.load(folder, embedder.encoders[0].length)
  # CLIP's own encoder is padded with its end token, whatever its number here.
  end = tokenizer.backend.eos_token_id
  ids = [end if pad == embedder.end else pad for pad in embedder.paddings]
  prompts = ClipPrompts(tuple(PromptSyntax(tokenizer, pad) for pad in ids))
  conditioners = tuple(
    _with_special_tokens(c, prompts).clone(paddings=tuple(ids))
    if isinstance(c, ClipEmbedder)
    else c
    for c in model.conditioners
  )
  return dataclasses.replace(
    loaded,
    model=dataclasses.replace(model, conditioners=conditioners),
    tokenizer=prompts,
  )
