"""Textual inversion: words that a model learns as vectors of its text towers.

Gal et al. 2022. The networks stay as they are; the tables of tokens grow.
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
from ldm_jax.pretrained.lora.merge import is_safetensors, placed, put, take
from ldm_jax.weights import mmap_files
from ldm_jax.weights.files import read_pickled, read_tensors

Vectors = Shaped[np.ndarray, "_ _"]  # towers differ in their features

_PARAM = "string_to_param"  # AUTOMATIC1111's, and of the paper's own code
_TOWERS = ("clip_l", "clip_g")  # SDXL's
_NAMELESS = {*_TOWERS, "emb_params", "*", ""}
_NEEDED = (
  "needed are the vectors of one word: {token: vectors}, string_to_param, "
  "emb_params, or clip_l and clip_g"
)


def load_inversion(
  opened: LoadedModel, path: str | os.PathLike, token: str | None = None
) -> LoadedModel:
  """The model with a word that stands for the vectors of a file.

  A prompt's word `token` becomes as many tokens as there are vectors, which
  the tokenizers call token, token_1, ...; with two towers each has its own.
  The file may be diffusers' {token: vectors}, AUTOMATIC1111's .pt, SDXL's
  clip_l with clip_g, or a bare emb_params.

  Args:
    token: the word; by default the one the file gives, or else its name.

  Raises:
    ConfigError: the model reads no prompts, or has no tokenizer.
    ValueError: the tokenizer knows the word, or cannot learn it.
    WeightsError: the file is unreadable, or its vectors are not as wide as the
      towers' or not for as many towers.
  """
  part, words = _listener(opened)
  content = _read(path)
  with mmap_files.error_context(path):
    name, rows = _parse(content)
    _check(rows, part.encoders)
  given = name or pathlib.Path(path).stem
  token = (given if token is None else token).strip()
  syntaxes, towers = [], []
  params = opened.params.conditioners
  for i, syntax in enumerate(words.syntaxes):
    syntaxes.append(syntax.taught(token, len(rows[i])))
    at = (part.input_key, "params", f"encoders_{i}", "tokens", "embedding")
    table = _grown(take(params, at), rows[i], syntaxes[i].ids(token))
    params = put(params, at, table)
    towers.append(_grown_tower(part.encoders[i], len(table), syntaxes[i]))
  heard = tuple(
    other.clone(encoders=tuple(towers)) if other is part else other
    for other in opened.model.conditioners
  )
  return dataclasses.replace(
    opened,
    model=dataclasses.replace(opened.model, conditioners=heard),
    params=opened.params.replace(conditioners=params),
    tokenizer=ClipPrompts(tuple(syntaxes)),
  )


def _listener(opened: LoadedModel) -> tuple[ClipEmbedder, ClipPrompts]:
  """What reads the prompts, and their tokenizers."""
  parts = opened.model.conditioners
  part = next((p for p in parts if isinstance(p, ClipEmbedder)), None)
  if part is None:
    raise ConfigError(
      "the model has no towers of CLIP, which textual inversion teaches words; "
      "leave the embedding out"
    )
  if not isinstance(opened.tokenizer, ClipPrompts):
    raise ConfigError(
      "the model has no tokenizer that could learn a word; give --tokenizer "
      "FOLDER (CLIP's)"
    )
  return part, opened.tokenizer


def _read(path: str | os.PathLike) -> Any:
  """What the file holds; torch's files may nest dictionaries."""
  if is_safetensors(path):
    return read_tensors(path)
  return read_pickled(path)


def _parse(content: Any) -> tuple[str, list[Vectors]]:
  """The word that a file gives, "" if none, and vectors for each tower."""
  if isinstance(content, np.ndarray):
    content = {"*": content}
  if not isinstance(content, Mapping) or not content:
    raise WeightsError(f"it holds {_kinds(content)}; {_NEEDED}")
  name, tensors = "", content
  if isinstance(content.get(_PARAM), Mapping):
    name, tensors = content.get("name"), content[_PARAM]
  keys = set(tensors)
  order = [key for key in _TOWERS if key in keys] or list(keys)
  if len(order) < len(keys) or (len(keys) > 1 and keys != set(_TOWERS)):
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
  return array.reshape(-1, array.shape[-1])


def _check(rows: list[Vectors], towers: tuple[ClipText, ...]) -> None:
  """One group of vectors for each tower, as wide as it is and as many."""
  widths = [row.shape[-1] for row in rows]
  needed = [tower.width for tower in towers]
  if widths != needed:
    raise WeightsError(
      f"its vectors have {' and '.join(map(str, widths))} features; this "
      f"model's text towers need {' and '.join(map(str, needed))}"
    )
  counts = [len(row) for row in rows]
  if len(set(counts)) > 1:
    raise WeightsError(
      f"it has {' and '.join(map(str, counts))} vectors for the towers; as "
      "many for each are needed"
    )


def _grown(table: Any, rows: Vectors, ids: list[int]) -> Any:
  """The table of tokens with the rows at the ids, most of them behind it."""
  old = np.asarray(table)
  size = max(len(old), max(ids) + 1)
  wide = np.zeros((size, old.shape[1]), np.float32)
  wide[: len(old)] = old
  wide[ids] = rows
  return placed(wide, table)


def _grown_tower(tower: ClipText, size: int, syntax: PromptSyntax) -> ClipText:
  """The tower with more tokens, pooled at the same one as before.

  Where it is pooled at the largest id, that was the tokenizer's end; from now
  on a learned word's would be larger.
  """
  end = tower.end
  if end is None:
    end = syntax.tokenizer.backend.eos_token_id
  return tower.clone(vocabulary=size, end=end)
