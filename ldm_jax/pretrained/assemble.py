"""From the pieces of a foreign model to a `LatentDiffusion`, parameters, words.

What each family of Stable Diffusion does with its text towers is said here,
once.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike

from ldm_jax.data import tokens
from ldm_jax.data.prompts import Dialect, Prompts
from ldm_jax.data.tokens import Words
from ldm_jax.diffusion.samplers import Recipe
from ldm_jax.diffusion.schedule import Schedule
from ldm_jax.latent_diffusion import LatentDiffusion, Parameters
from ldm_jax.nn.autoencoder import Autoencoder
from ldm_jax.nn.clip import ClipText
from ldm_jax.nn.conditioner import ClassEmbedder, SizeEmbedder, TextEmbedder
from ldm_jax.nn.conditioners import Conditioner
from ldm_jax.nn.prompts import ClipEmbedder
from ldm_jax.nn.spatial import DepthMap, LowResolution, MaskedImage
from ldm_jax.nodes import ConfigError
from ldm_jax.opened import Opened
from ldm_jax.pretrained import schedules, unets
from ldm_jax.pretrained.autoencoders import autoencoder
from ldm_jax.pretrained.networks import Module, load
from ldm_jax.pretrained.pieces import Pieces

# What foreign pipelines know without a network for it.
WEIGHTLESS = SizeEmbedder | MaskedImage | LowResolution | DepthMap

_BERT_EMPTY = (101, 102)  # [CLS] [SEP] of bert-base-uncased
_OPEN_CLIP_PADDING = 0
_CLIP_PADDING = 49407


def assemble(pieces: Pieces, dtype: DTypeLike = "float32") -> Opened:
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
  schedule, prediction, recipe = Schedule(), "eps", Recipe(landing=0.0)
  if pieces.scheduler is not None:
    schedule, prediction = schedules.schedule(pieces.scheduler)
    recipe = schedules.recipe(pieces.scheduler)
    notices += schedules.departures(pieces.scheduler)
  words = words_of(pieces)
  conditioners = conditioners_of(pieces, networks, words)
  conditioners += _beside(pieces, first_stage)
  model = LatentDiffusion(
    first_stage,
    unet,
    tuple(conditioners),
    schedule,
    prediction,
    low_noise=_low_noise(pieces, conditioners),
  )
  side = (fed.size or 64) * first_stage.stride
  return Opened(
    model=model,
    params=Parameters(
      first_params,
      jnp.float32(autoencoder(vae)[1]),
      _variables(conditioners, networks),
      unet_params,
    ),
    words=words,
    height=side,
    width=side,
    guidance=5.0 if fed.sinusoids else 7.5,
    recipe=recipe,
    inputs=fed.channels,
    notices=notices,
  )


def _beside(pieces: Pieces, stage: Autoencoder) -> list[Conditioner]:
  """What the U-Net reads beside x_t, told by its channels."""
  fed, latents, stride = _fed(pieces), stage.latent_channels, stage.stride
  if fed.channels == 2 * latents + 1:
    return [MaskedImage()]
  if fed.channels == latents + 3 and fed.vector is not None:
    return [LowResolution(fed.vector, min(350, fed.vector))]
  if fed.channels == latents + 1:
    return [DepthMap(cell=stride)]
  return []


def _low_noise(pieces: Pieces, parts: list[Conditioner]) -> Schedule | None:
  """How the small picture of an upscaler is given noise."""
  if not any(isinstance(part, LowResolution) for part in parts):
    return None
  if pieces.low_res_scheduler is None:
    return Schedule()
  return schedules.schedule(pieces.low_res_scheduler)[0]


def _fed(pieces: Pieces) -> unets.Inputs:
  return unets.inputs(pieces.networks["unet"].config)


def conditioners_of(
  pieces: Pieces,
  networks: dict[str, tuple[Module, Any]],
  words: Words | Prompts | None,
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
  embedder: ClipEmbedder, words: Words | Prompts | None
) -> ClipEmbedder:
  """The embedder with the begin and end of its own tokenizer."""
  if not isinstance(words, Prompts):
    return embedder
  tokenizer = words.dialects[0].words.tokenizer
  return embedder.clone(
    begin=tokenizer.bos_token_id, end=tokenizer.eos_token_id
  )


def paddings(pieces: Pieces, words: Words | Prompts | None) -> tuple[int, ...]:
  """For each tower, the id behind the end token."""
  if isinstance(words, Prompts):
    return tuple(dialect.padding for dialect in words.dialects)
  towers = [
    n for n in ("text_encoder", "text_encoder_2") if n in pieces.networks
  ]
  return tuple(_padding(pieces, name) for name in towers)


def _padding(pieces: Pieces, name: str) -> int:
  """OpenCLIP's towers are those with the exact gelu."""
  is_open = pieces.networks[name].config.get("hidden_act") == "gelu"
  return _OPEN_CLIP_PADDING if is_open else _CLIP_PADDING


def words_of(pieces: Pieces) -> Words | Prompts | None:
  """The tokenizers that lie beside the text encoders, if they do.

  Raises:
    ConfigError: there is one, but it has no words or is unreadable.
  """
  if not pieces.tokenizers:
    return None
  dialects = []
  for name, folder in pieces.tokenizers.items():
    foreign = pieces.networks[name]
    length = foreign.config.get("max_position_embeddings", 77)
    words = tokens.load(folder, length)
    if foreign.network == "text":
      return words
    padding = words.tokenizer.pad_token_id
    dialects.append(
      Dialect(words, _padding(pieces, name) if padding is None else padding)
    )
  return Prompts(tuple(dialects))


def _variables(
  conditioners: list[Conditioner], networks: dict[str, tuple[Module, Any]]
) -> dict[str, Any]:
  """Variables of the conditioners, by what each reads."""
  found = {}
  for part in conditioners:
    if isinstance(part, WEIGHTLESS):
      found[part.reads] = {}
    elif isinstance(part, ClassEmbedder):
      ((_, variables),) = networks.values()
      found[part.reads] = variables
    elif isinstance(part, TextEmbedder):
      ((_, variables),) = networks.values()
      found[part.reads] = {"params": {"encoder": variables["params"]}}
    else:
      towers = [variables["params"] for _, variables in networks.values()]
      found[part.reads] = {
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


def restated(opened: Opened, words: Words | Prompts) -> Opened:
  """The model with another tokenizer's words, ids and paddings."""
  model = opened.model
  parts = tuple(
    _with_ids(part, words).clone(
      paddings=tuple(dialect.padding for dialect in words.dialects)
    )
    if isinstance(part, ClipEmbedder) and isinstance(words, Prompts)
    else part
    for part in model.conditioners
  )
  return dataclasses.replace(
    opened, model=dataclasses.replace(model, conditioners=parts), words=words
  )
