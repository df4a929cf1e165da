"""Tokenizers of published text encoders, and their special tokens."""

import dataclasses

from ldm_jax.data.text import tokenizers
from ldm_jax.data.text.clip_prompts import ClipPrompts, PromptSyntax
from ldm_jax.data.text.tokenizers import Tokenizer
from ldm_jax.errors import ConfigError
from ldm_jax.loaded_model import LoadedModel
from ldm_jax.nn.conditioners.clip_embedder import ClipEmbedder
from ldm_jax.nn.conditioners.t5_embedder import T5Embedder
from ldm_jax.pretrained.components import TOKENIZERS, Components
from ldm_jax.pretrained.text.families import (
  FLUX_LENGTHS,
  SD3_LENGTH,
  with_t5_tokens,
)

T5_FAMILIES = ("mmdit", "flux")  # kinds of backbones; T5 cuts their prompts
_OPEN_CLIP_PADDING = 0
_CLIP_PADDING = 49407


def tokenizer_of(components: Components) -> Tokenizer | ClipPrompts | None:
  """The tokenizers of the text encoders, if the folder has them.

  Raises:
    ConfigError: there is one, but it has no vocabulary or is unreadable.
  """
  syntaxes = []
  for name, folder in components.tokenizers.items():
    network = components.networks.get(name)
    if network is None or network.kind == "t5":
      continue
    length = network.config.get("max_position_embeddings", 77)
    tokenizer = tokenizers.load(folder, length)
    if network.kind == "text":
      return tokenizer
    padding = tokenizer.backend.pad_token_id
    if padding is None:
      padding = _padding(components, name)
    syntaxes.append(PromptSyntax(tokenizer, padding))
  if not syntaxes:
    return None
  unet = components.networks.get("unet")
  is_one = unet is not None and unet.kind in T5_FAMILIES
  return ClipPrompts(tuple(syntaxes), 1 if is_one else None)


def t5_tokenizer_of(components: Components) -> Tokenizer | None:
  """The tokenizer of T5, if the folder has one.

  Raises:
    ConfigError: there is one, but it has no vocabulary or is unreadable.
  """
  for name, folder in components.tokenizers.items():
    network = components.networks.get(name)
    if network is not None and network.kind == "t5":
      return tokenizers.load(folder, t5_length(components))
  return None


def t5_length(components: Components) -> int:
  """Ids of a prompt for T5 in the model's family."""
  unet = components.networks["unet"]
  if unet.kind == "flux":
    return FLUX_LENGTHS[bool(unet.config.get("guidance_embeds"))]
  return SD3_LENGTH


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
      "the model has no CLIP text encoder; leave tokenizer out (--tokenizer), "
      "or give the encoder too: text_encoder=[FOLDER] (--text_encoder)"
    )
  tokenizer = tokenizers.load(folder, embedder.encoders[0].length)
  # CLIP's own encoder is padded with its end token, whatever its number here.
  end = tokenizer.backend.eos_token_id
  ids = [end if pad == embedder.end else pad for pad in embedder.paddings]
  prompts = ClipPrompts(
    tuple(PromptSyntax(tokenizer, pad) for pad in ids), embedder.max_chunks
  )
  conditioners = tuple(
    with_special_tokens(c, prompts).clone(paddings=tuple(ids))
    if isinstance(c, ClipEmbedder)
    else c
    for c in model.conditioners
  )
  return dataclasses.replace(
    loaded,
    model=dataclasses.replace(model, conditioners=conditioners),
    tokenizer=prompts,
  )


def with_t5_tokenizer(loaded: LoadedModel, folder: str) -> LoadedModel:
  """The model with T5's tokenizer from a folder, which single files lack.

  Raises:
    ConfigError: the model has no T5, or the folder no tokenizer.
  """
  model = loaded.model
  embedder = model.find_conditioner(T5Embedder)
  if embedder is None:
    raise ConfigError(
      "the model has no T5; leave t5_tokenizer out (--t5_tokenizer), or give "
      "the encoder too: text_encoder=[PATH] (--text_encoder)"
    )
  tokenizer = tokenizers.load(folder, embedder.length)
  conditioners = tuple(
    with_t5_tokens(c, tokenizer) if c is embedder else c
    for c in model.conditioners
  )
  return dataclasses.replace(
    loaded,
    model=dataclasses.replace(model, conditioners=conditioners),
    t5_tokenizer=tokenizer,
  )


def with_special_tokens(
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
  return tuple(
    _padding(components, name)
    for name in TOKENIZERS
    if name in components.networks and components.networks[name].kind != "t5"
  )


def _padding(components: Components, name: str) -> int:
  """OpenCLIP's text encoders are those with the exact gelu."""
  is_open = components.networks[name].config.get("hidden_act") == "gelu"
  return _OPEN_CLIP_PADDING if is_open else _CLIP_PADDING
