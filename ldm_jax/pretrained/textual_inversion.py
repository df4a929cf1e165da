"""Textual inversion: tokens learned as embeddings of the text encoders.

Gal et al. 2022. Only the token embedding tables change: they grow by the
learned vectors.
"""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Shaped

from ldm_jax.data.text.clip_prompts import ClipPrompts, PromptSyntax
from ldm_jax.errors import ConfigError, WeightsError
from ldm_jax.loaded_model import LoadedModel
from ldm_jax.nn.conditioners.clip_embedder import ClipEmbedder
from ldm_jax.nn.encoders.clip_text import ClipText
from ldm_jax.pretrained.hub.fetch import local_adapter
from ldm_jax.pretrained.lora.adapter_config import is_safetensors
from ldm_jax.pretrained.lora.leaves import get_leaf, like_leaf, with_leaf
from ldm_jax.weights import mmap_files
from ldm_jax.weights.files import read_pickled, read_tensors
from ldm_jax.weights.naming.convert import check_finite

Vectors = Shaped[np.ndarray, "_ _"]  # encoders differ in width

_PARAM = "string_to_param"  # AUTOMATIC1111's, and of the paper's own code
_ENCODERS = ("clip_l", "clip_g")  # SDXL's
_NAMELESS = {*_ENCODERS, "emb_params", "*", ""}
_NEEDED = (
  "expected the vectors of one token: {token: vectors}, string_to_param, "
  "emb_params, or clip_l and clip_g"
)


def load_inversion(
  loaded: LoadedModel, path: str | os.PathLike, token: str | None = None
) -> LoadedModel:
  """The model with a token that stands for the vectors of a file.

  In prompts `token` becomes as many tokens as there are vectors, which the
  tokenizers name token, token_1, ...; of two text encoders each has its own
  vectors. The file may be diffusers' {token: vectors}, AUTOMATIC1111's .pt,
  SDXL's clip_l with clip_g, or a bare emb_params.

  Args:
    token: by default the one the file names, or else the file's name.

  Raises:
    ConfigError: the model has no CLIP text encoder, or no tokenizer.
    ValueError: the tokenizer has the token already, or cannot add it.
    WeightsError: the file is unreadable, or its vectors are not as wide as the
      text encoders, or not for as many.
  """
  content = _read(path)
  with mmap_files.error_context(path):
    name, _ = _parse(content)
  default = name or pathlib.Path(path).stem
  with mmap_files.error_context(path):
    return add_inversion(loaded, content, default if token is None else token)


def add_inversion(loaded: LoadedModel, content: Any, token: str) -> LoadedModel:
  """The model with a token that stands for vectors.

  Args:
    content: what a file of textual inversion holds; see `load_inversion`.

  Raises:
    ConfigError, ValueError, WeightsError: as `load_inversion`.
  """
  embedder, tokenizer = _embedder(loaded)
  _, rows = _parse(content)
  _check(rows, embedder.encoders)
  token = token.strip()
  syntaxes, encoders = [], []
  params = loaded.params.conditioners
  for i, syntax in enumerate(tokenizer.syntaxes):
    syntaxes.append(syntax.with_token(token, len(rows[i])))
    at = (embedder.input_key, "params", f"encoders_{i}", "tokens", "embedding")
    table = _grown_table(get_leaf(params, at), rows[i], syntaxes[i].ids(token))
    params = with_leaf(params, at, table)
    encoder = embedder.encoders[i]
    encoders.append(_grown_encoder(encoder, len(table), syntaxes[i]))
  conditioners = tuple(
    other.clone(encoders=tuple(encoders)) if other is embedder else other
    for other in loaded.model.conditioners
  )
  return dataclasses.replace(
    loaded,
    model=dataclasses.replace(loaded.model, conditioners=conditioners),
    params=loaded.params.replace(conditioners=params),
    tokenizer=dataclasses.replace(tokenizer, syntaxes=tuple(syntaxes)),
  )


def _embedder(loaded: LoadedModel) -> tuple[ClipEmbedder, ClipPrompts]:
  """The conditioner of the prompts, and their tokenizers."""
  conditioners = loaded.model.conditioners
  embedder = next(
    (c for c in conditioners if isinstance(c, ClipEmbedder)), None
  )
  if embedder is None:
    raise ConfigError(
      "the model has no CLIP text encoder, which textual inversion needs; "
      "leave embedding out (--embedding)"
    )
  if not isinstance(loaded.tokenizer, ClipPrompts):
    raise ConfigError(
      "the model has no tokenizer to which a token could be added; give the "
      "folder of CLIP's as tokenizer (--tokenizer)"
    )
  return embedder, loaded.tokenizer


def _read(path: str | os.PathLike) -> Any:
  """What the file holds; torch's files may nest dictionaries."""
  path = local_adapter(path)
  if is_safetensors(path):
    return read_tensors(path)
  return read_pickled(path)


def _parse(content: Any) -> tuple[str, list[Vectors]]:
  """The file's name of the token, or "", and vectors for each encoder."""
  if isinstance(content, np.ndarray):
    content = {"*": content}
  if not isinstance(content, Mapping) or not content:
    raise WeightsError(f"it holds {_kinds(content)}; {_NEEDED}")
  name, tensors = "", content
  if isinstance(content.get(_PARAM), Mapping):
    name, tensors = content.get("name"), content[_PARAM]
  keys = set(tensors)
  order = [key for key in _ENCODERS if key in keys] or list(keys)
  if len(order) < len(keys) or (len(keys) > 1 and keys != set(_ENCODERS)):
    raise WeightsError(f"it holds {_kinds(tensors)}; {_NEEDED}")
  if tensors is content:
    name = order[0]
  is_named = isinstance(name, str) and name not in _NAMELESS
  return (name if is_named else ""), [_vectors(k, tensors[k]) for k in order]


def _kinds(content: Any) -> str:
  """The first entries of a dictionary, or what else it is."""
  if not isinstance(content, Mapping):
    return f"a {type(content).__name__}"
  some = ", ".join(str(key)[:50] for key in list(content)[:5])
  return f"{len(content)} entries ({some})"


def _vectors(key: str, array: Any) -> Vectors:
  """Rows of features; a single vector may come without an axis for it."""
  is_array = isinstance(array, np.ndarray) and array.dtype.kind in "fV"
  if not is_array or array.ndim not in (1, 2) or not array.size:
    shape = np.shape(array) if isinstance(array, np.ndarray) else "no tensor"
    raise WeightsError(f"{str(key)[:50]} is {shape}; {_NEEDED}")
  check_finite(str(key)[:50], array)
  return array.reshape(-1, array.shape[-1])


def _check(rows: list[Vectors], encoders: tuple[ClipText, ...]) -> None:
  """Checks that each encoder has vectors of its width, and as many each."""
  widths = [row.shape[-1] for row in rows]
  needed = [encoder.width for encoder in encoders]
  if widths != needed:
    raise WeightsError(
      f"its vectors have {' and '.join(map(str, widths))} features; this "
      f"model's text encoders need {' and '.join(map(str, needed))}"
    )
  counts = [len(row) for row in rows]
  if len(set(counts)) > 1:
    raise WeightsError(
      f"it has {' and '.join(map(str, counts))} vectors for the text "
      "encoders; as many for each are needed"
    )


def _grown_table(table: Any, rows: Vectors, ids: list[int]) -> Any:
  """The token embeddings with the rows at the ids, extended as needed."""
  old = np.asarray(table)
  size = max(len(old), max(ids) + 1)
  wide = np.zeros((size, old.shape[1]), np.float32)
  wide[: len(old)] = old
  wide[ids] = rows
  return like_leaf(wide, table, "an embedding")


def _grown_encoder(
  encoder: ClipText, size: int, syntax: PromptSyntax
) -> ClipText:
  """The encoder with more tokens, pooled at the same token as before.

  An encoder pooled at the largest id is pooled at the end token, which the
  learned tokens' ids exceed, so its end becomes explicit.
  """
  end = encoder.end
  if end is None:
    end = syntax.tokenizer.backend.eos_token_id
  return encoder.clone(vocabulary=size, end=end)
