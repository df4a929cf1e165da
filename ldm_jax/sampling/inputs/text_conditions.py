"""PromptBatch as the inputs of a model's text conditioners."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

from ldm_jax.data.text.prompt_weighting import WeightedPrompt
from ldm_jax.data.text.tokenizers import Tokenizer
from ldm_jax.errors import ConfigError
from ldm_jax.loaded_model import LoadedModel
from ldm_jax.nn.conditioners.clip_embedder import ClipEmbedder
from ldm_jax.nn.conditioners.embedders import TextEmbedder
from ldm_jax.nn.conditioners.t5_embedder import T5Embedder
from ldm_jax.sampling.inputs.prompt_inputs import (
  TextInput,
  check_ids,
  encode_clip,
  encode_text,
  weighted_prompts,
  with_equal_lengths,
)
from ldm_jax.sampling.sampling_config import Conditioning

TextConditioner = TextEmbedder | ClipEmbedder | T5Embedder


class PromptBatch(NamedTuple):
  """The prompts of a batch of images.

  Attributes:
    negatives: one per image; None is unconditional.
    positives: of each prompt that is composed, one per image.
    emphasis: use the weights of prompts, and read (word:1.3) and [word] in
      texts.
    chunks: of CLIP's prompts at least.
  """

  negatives: Sequence[str | WeightedPrompt | None]
  positives: Sequence[Sequence[str | WeightedPrompt]]
  emphasis: bool
  chunks: int


def with_texts(
  loaded: LoadedModel,
  part: TextConditioner,
  prompts: PromptBatch,
  sides: Sequence[Conditioning],
) -> list[Conditioning]:
  """The sides, the negative one first, with the inputs of a text encoder.

  Raises:
    ConfigError: the model has no tokenizer for it, or one of another model.
  """
  is_clip = isinstance(part, ClipEmbedder)
  read = functools.partial(weighted_prompts, has_syntax=prompts.emphasis)
  positives = [read(each) for each in prompts.positives]
  negatives = read(prompts.negatives, keeps_none=is_clip)
  if is_clip:
    options = prompts.emphasis, prompts.chunks
    texts = _clip_texts(loaded, [negatives, *positives], *options)
  else:
    tokenizer = _tokenizer_of(loaded, part)
    encode = functools.partial(encode_text, tokenizer)
    every = [negatives, *positives]
    texts = [encode(each, prompts.emphasis) for each in every]
  encoders = part.encoders if is_clip else (part.encoder,)
  check_ids(texts, [encoder.vocabulary for encoder in encoders])
  return [
    _with_text(side, part.input_key, text)
    for side, text in zip(sides, texts, strict=True)
  ]


def _with_text(side: Conditioning, name: str, text: TextInput) -> Conditioning:
  """The side with the input `text` of the conditioner `name`."""
  weights, empty = side.weights, side.empty
  if text.weights is not None:
    weights, empty = weights | {name: text.weights}, empty | {name: text.empty}
  return Conditioning(
    side.raw | {name: text.ids},
    side.is_null | {name: text.is_null},
    weights,
    empty,
  )


def _tokenizer_of(loaded: LoadedModel, part: TextConditioner) -> Tokenizer:
  """The tokenizer of a text encoder of one sequence.

  Raises:
    ConfigError: T5's is missing.
  """
  if not isinstance(part, T5Embedder):
    return loaded.tokenizer
  if loaded.t5_tokenizer is None:
    raise ConfigError(
      "the model comes without T5's tokenizer; give a folder (--t5_tokenizer) "
      "with tokenizer.json or spiece.model, such as tokenizer_3 of any SD3 or "
      "tokenizer_2 of any FLUX model"
    )
  return loaded.t5_tokenizer


def _clip_texts(
  loaded: LoadedModel,
  sides: Sequence[Sequence[WeightedPrompt | None]],
  has_weights: bool,
  chunks: int,
) -> list[TextInput]:
  """Ids for CLIP of every side, of one length."""
  if loaded.tokenizer is None:
    raise ConfigError(
      "the model comes without a tokenizer; give a folder (--tokenizer) with "
      "vocab.json and merges.txt, or tokenizer.json (CLIP's, as in the "
      "tokenizer folder of any Stable Diffusion model)"
    )
  options = has_weights, chunks
  texts = [encode_clip(loaded.tokenizer, side, *options) for side in sides]
  return with_equal_lengths(texts, loaded.tokenizer.tokens_per_chunk + 2)
