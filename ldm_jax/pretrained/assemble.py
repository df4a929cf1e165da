"""From the pieces of a foreign model to a `LatentDiffusion`, parameters, words.

What each family of Stable Diffusion does with its text towers is said here,
once.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike

from ldm_jax.data.text import tokenizers
from ldm_jax.data.text.clip_prompts import ClipPrompts, PromptSyntax
from ldm_jax.data.text.tokenizers import Tokenizer
from ldm_jax.diffusion.samplers import SamplerConfig
from ldm_jax.diffusion.schedule import Schedule
from ldm_jax.errors import ConfigError
from ldm_jax.latent_diffusion import LatentDiffusion, Parameters
from ldm_jax.loaded_model import LoadedModel
from ldm_jax.nn.autoencoder import Autoencoder
from ldm_jax.nn.conditioners.clip_embedder import ClipEmbedder
from ldm_jax.nn.conditioners.conditioner import Conditioner
from ldm_jax.nn.conditioners.embedders import (
  ClassEmbedder,
  SizeEmbedder,
  TextEmbedder,
)
from ldm_jax.nn.conditioners.spatial import DepthMap, LowResolution, MaskedImage
from ldm_jax.nn.encoders.clip_text import ClipText
from ldm_jax.pretrained.components import Components
from ldm_jax.pretrained.configs import scheduler_config, unet_reader
from ldm_jax.pretrained.configs.autoencoder_config import autoencoder
from ldm_jax.pretrained.networks import Module, load

# What foreign pipelines know without a network for it.
WEIGHTLESS = SizeEmbedder | MaskedImage | LowResolution | DepthMap

_BERT_EMPTY = (101, 102)  # [CLS] [SEP] of bert-base-uncased
_OPEN_CLIP_PADDING = 0
_CLIP_PADDING = 49407


def assemble(pieces: Components, dtype: DTypeLike = "float32") -> LoadedModel:
  """Reads every network and puts the model together.

  Raises:
    ConfigError: a part is missing, or asks for what we do not have.
    WeightsError: a network's tensors are not its config's.
  """
  for name in ("unet", "vae"):
    if name not in pieces.networks:
      raise ConfigError(
        f"the model has no {name}; it has {', '.join(pieces.networks)}. One "
        "network by itself is loaded by naming its subfolder"
      )
  networks = {
    name: load(foreign, dtype) for name, foreign in pieces.networks.items()
  }
  first_stage, first_params = networks.pop("vae")
  unet, unet_params = networks.pop("unet")
  vae, fed = pieces.networks["vae"].config, _fed(pieces)
  notices = pieces.notices
  schedule, prediction, sampler_config = (
    Schedule(),
    "eps",
    SamplerConfig(final_time=0.0),
  )
  if pieces.scheduler is not None:
    schedule, prediction = scheduler_config.schedule(pieces.scheduler)
    sampler_config = scheduler_config.sampler_config(pieces.scheduler)
    notices += scheduler_config.unsupported_options(pieces.scheduler)
  words = tokenizer_of(pieces)
  conditioners = conditioners_of(pieces, networks, words)
  conditioners += _beside(pieces, first_stage)
  model = LatentDiffusion(
    first_stage,
    unet,
    tuple(conditioners),
    schedule,
    prediction,
    noise_augmentation_schedule=_low_noise(pieces, conditioners),
  )
  side = (fed.size or 64) * first_stage.stride
  return LoadedModel(
    model=model,
    params=Parameters(
      first_params,
      jnp.float32(autoencoder(vae)[1]),
      _variables(conditioners, networks),
      unet_params,
    ),
    tokenizer=words,
    height=side,
    width=side,
    guidance=5.0 if fed.sinusoids else 7.5,
    sampler_config=sampler_config,
    inputs=fed.channels,
    notices=notices,
  )


def _beside(pieces: Components, stage: Autoencoder) -> list[Conditioner]:
  """What the U-Net reads beside x_t, told by its channels."""
  fed, latents, stride = _fed(pieces), stage.latent_channels, stage.stride
  if fed.channels == 2 * latents + 1:
    return [MaskedImage()]
  if fed.channels == latents + 3 and fed.vector is not None:
    return [LowResolution(fed.vector, min(350, fed.vector))]
  if fed.channels == latents + 1:
    return [DepthMap(cell=stride)]
  return []


def _low_noise(pieces: Components, parts: list[Conditioner]) -> Schedule | None:
  """How the small picture of an upscaler is given noise."""
  if not any(isinstance(part, LowResolution) for part in parts):
    return None
  if pieces.low_res_scheduler is None:
    return Schedule()
  return scheduler_config.schedule(pieces.low_res_scheduler)[0]


def _fed(pieces: Components) -> unet_reader.Inputs:
  return unet_reader.inputs(pieces.networks["unet"].config)


def conditioners_of(
  pieces: Components,
  networks: dict[str, tuple[Module, Any]],
  words: Tokenizer | ClipPrompts | None,
) -> list[Conditioner]:
  """What the U-Net is told by, as its family has it.

  Raises:
    ConfigError: the towers are not those of a family that we know.
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
  towers = tuple(modules.values())
  embedder = ClipEmbedder(towers, (0,) * len(towers), paddings(pieces, words))
  embedder = _with_ids(embedder, words)
  fed = _fed(pieces)
  if fed.sinusoids is None:
    if len(towers) > 1:
      raise ConfigError("two text encoders, but a U-Net without a vector")
    return [embedder]
  # SDXL: states before the last block and norm, and the last tower's vector.
  pooled = towers[-1].projection
  count = (fed.vector - (pooled or 0)) // fed.sinusoids
  is_silent = pieces.index.get("force_zeros_for_empty_prompt", len(towers) > 1)
  if pooled is None or count not in (5, 6):
    raise ConfigError(
      f"a vector of {fed.vector} features is not a pooled text of {pooled} "
      f"and 5 or 6 numbers of {fed.sinusoids}"
    )
  embedder = embedder.clone(
    skips=(1,) * len(towers),
    is_normed=False,
    is_pooled=True,
    null="zeros" if is_silent else "empty",
  )
  ends_with = "target" if count == 6 else "score"
  return [embedder, SizeEmbedder(ends_with, fed.sinusoids)]


def _with_ids(
  embedder: ClipEmbedder, words: Tokenizer | ClipPrompts | None
) -> ClipEmbedder:
  """The embedder with the begin and end of its own tokenizer."""
  if not isinstance(words, ClipPrompts):
    return embedder
  tokenizer = words.syntaxes[0].tokenizer.backend
  return embedder.clone(
    begin=tokenizer.bos_token_id, end=tokenizer.eos_token_id
  )


def paddings(
  pieces: Components, words: Tokenizer | ClipPrompts | None
) -> tuple[int, ...]:
  """For each tower, the id behind the end token."""
  if isinstance(words, ClipPrompts):
    return tuple(syntax.padding for syntax in words.syntaxes)
  towers = [
    n for n in ("text_encoder", "text_encoder_2") if n in pieces.networks
  ]
  return tuple(_padding(pieces, name) for name in towers)


def _padding(pieces: Components, name: str) -> int:
  """OpenCLIP's towers are those with the exact gelu."""
  is_open = pieces.networks[name].config.get("hidden_act") == "gelu"
  return _OPEN_CLIP_PADDING if is_open else _CLIP_PADDING


def tokenizer_of(pieces: Components) -> Tokenizer | ClipPrompts | None:
  """The tokenizers that lie beside the text encoders, if they do.

  Raises:
    ConfigError: there is one, but it has no words or is unreadable.
  """
  if not pieces.tokenizers:
    return None
  syntaxes = []
  for name, folder in pieces.tokenizers.items():
    foreign = pieces.networks[name]
    length = foreign.config.get("max_position_embeddings", 77)
    words = tokenizers.load(folder, length)
    if foreign.network == "text":
      return words
    padding = words.backend.pad_token_id
    syntaxes.append(
      PromptSyntax(
        words, _padding(pieces, name) if padding is None else padding
      )
    )
  return ClipPrompts(tuple(syntaxes))


def _variables(
  conditioners: list[Conditioner], networks: dict[str, tuple[Module, Any]]
) -> dict[str, Any]:
  """Variables of the conditioners, by what each reads."""
  found = {}
  for part in conditioners:
    if isinstance(part, WEIGHTLESS):
      found[part.input_key] = {}
    elif isinstance(part, ClassEmbedder):
      ((_, variables),) = networks.values()
      found[part.input_key] = variables
    elif isinstance(part, TextEmbedder):
      ((_, variables),) = networks.values()
      found[part.input_key] = {"params": {"encoder": variables["params"]}}
    else:
      towers = [variables["params"] for _, variables in networks.values()]
      found[part.input_key] = {
        "params": {f"encoders_{i}": t for i, t in enumerate(towers)}
      }
  return found


def split_variables(
  conditioner: Conditioner, variables: dict[str, Any]
) -> list[tuple[Module, dict[str, Any]]]:
  """The networks within a conditioner, with their own variables."""
  if isinstance(conditioner, WEIGHTLESS):
    return []
  if isinstance(conditioner, ClassEmbedder):
    return [(conditioner, variables)]
  params = variables["params"]
  if isinstance(conditioner, TextEmbedder):
    return [(conditioner.encoder, {"params": params["encoder"]})]
  return [
    (tower, {"params": params[f"encoders_{i}"]})
    for i, tower in enumerate(conditioner.encoders)
  ]


def restated(
  opened: LoadedModel, words: Tokenizer | ClipPrompts
) -> LoadedModel:
  """The model with another tokenizer's words, ids and paddings."""
  model = opened.model
  parts = tuple(
    _with_ids(part, words).clone(
      paddings=tuple(syntax.padding for syntax in words.syntaxes)
    )
    if isinstance(part, ClipEmbedder) and isinstance(words, ClipPrompts)
    else part
    for part in model.conditioners
  )
  return dataclasses.replace(
    opened,
    model=dataclasses.replace(model, conditioners=parts),
    tokenizer=words,
  )
