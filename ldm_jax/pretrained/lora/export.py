"""Writes a trained LoRA as other programs read it."""

import json
import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from ldm_jax.errors import WeightsError
from ldm_jax.files.file_lock import lock_output
from ldm_jax.loaded_model import LoadedModel
from ldm_jax.nn.lora import FACTORS, LoRA
from ldm_jax.nn.unet import UNet
from ldm_jax.pretrained.lora.module_names import networks
from ldm_jax.pretrained.lora.skipped_modules import skipped_modules
from ldm_jax.weights.naming.convert import Row, list_names
from ldm_jax.weights.naming.layouts import LAYOUTS, Part
from ldm_jax.weights.safetensors_files import write_safetensors

LoraFormat = Literal["kohya", "peft"]
Path = tuple[str, ...]
# How modules of CLIP's text encoder begin, and of no other network.
_OF_CLIP = ("embeddings.", "encoder.layers.", "final_layer_norm")

logger = logging.getLogger(__name__)


class Factors(NamedTuple):
  """The factors of a matrix in torch's layout.

  Attributes:
    kohya: its full name in a file of kohya's form.
    module: its name within the network.
    down, up: [r i ...] and [o r ...].
    alpha: the product is scaled by alpha / r.
    part: of the rows of the module's matrix that they change; None for all.
  """

  kohya: str
  module: str
  down: np.ndarray
  up: np.ndarray
  alpha: float
  part: Part | None = None

  @property
  def rank(self) -> int:
    return len(self.down)


Found = Mapping[str, list[Factors]]  # by network


def save_lora(
  loaded: LoadedModel,
  lora: LoRA,
  factors: Mapping[str, Any],
  path: str | os.PathLike,
  form: LoraFormat = "kohya",
) -> None:
  """Writes the factors as a .safetensors of kohya's form, or of peft's.

  kohya's has a tensor of alpha for every matrix; peft's has r and alpha in its
  metadata, and the ends of the names of the modules to adapt, which are the
  same in transformers 4 and 5. Of a transformer, kohya's has the authors'
  names, queries, keys and values in one matrix, and peft's has diffusers'. A
  warning names what other programs skip.

  Raises:
    WeightsError: a matrix has no name in LoRA files; they are listed.
  """
  remaining = dict(pairs_of(factors))
  found: dict[str, list[Factors]] = {}  # by network
  is_unet = isinstance(loaded.model.unet, UNet)
  scheme = "diffusers" if is_unet or form == "peft" else "compvis"
  for starts, start, table in networks(loaded, (scheme,)):
    prefix = next(s for s in starts if s.startswith("lora_"))
    dotted = next(s for s in starts if s.endswith("."))
    network = dotted.removesuffix(".")
    for row in table.rows:
      path_in_model = (*start, *row.path.split("/"))
      if path_in_model in remaining:
        down, up = _torch_layout(*remaining.pop(path_in_model), row)
        module = row.foreign_name.removesuffix(".weight")
        alpha = lora.alpha_of("/".join(path_in_model))
        found.setdefault(network, []).append(
          Factors(_kohya(prefix, module), module, down, up, alpha, row.part)
        )
  if remaining:
    names = ["/".join(kernel) for kernel in remaining]
    raise WeightsError(
      f"no format of LoRA has names for {list_names(names, lambda _: ())}"
    )
  found = {network: _joined(pairs) for network, pairs in found.items()}
  write = {"kohya": _as_kohya, "peft": _as_peft}[form]
  tensors, metadata = write(found)
  if skipped := skipped_modules(loaded.model, _modules(found), form):
    logger.warning(skipped)
  with lock_output(path):
    write_safetensors(path, tensors, metadata=metadata)


def _joined(pairs: Sequence[Factors]) -> list[Factors]:
  """The same with the parts of a stacked matrix as one, of all their ranks.

  [B1 0; 0 B2] [A1; A2] changes every part by its own product.
  """
  groups: dict[str, list[Factors]] = {}
  for pair in pairs:
    groups.setdefault(pair.module, []).append(pair)
  return [
    group[0] if group[0].part is None else _stacked(group)
    for group in groups.values()
  ]


def _stacked(group: Sequence[Factors]) -> Factors:
  first = group[0]
  rows, rank = len(first.up) // first.part.span, 0
  total = sum(pair.rank for pair in group)
  up = np.zeros((rows * first.part.count, total), np.float32)
  scale = first.alpha / first.rank
  for pair in group:
    start = rows * pair.part.index
    own = pair.up * np.float32(pair.alpha / pair.rank / scale)
    up[start : start + len(own), rank : rank + pair.rank] = own
    rank += pair.rank
  down = np.concatenate([pair.down for pair in group])
  return Factors(first.kohya, first.module, down, up, scale * total)


def _kohya(prefix: str, name: str) -> str:
  """kohya's name of a module; transformers 5 leaves `text_model` out."""
  return prefix + _wrapped(name).replace(".", "_")


def _wrapped(module: str) -> str:
  """A module of CLIP's text encoder under transformers 4's `text_model`.

  diffusers removes it where transformers 5's encoder has none.
  """
  return "text_model." * module.startswith(_OF_CLIP) + module


def _modules(found: Found) -> list[tuple[str, str]]:
  """(network, module) of every matrix."""
  return [(net, pair.module) for net, pairs in found.items() for pair in pairs]


def _as_kohya(found: Found) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  """With a tensor of alpha for every pair, the same for all.

  diffusers (0.36, 0.42) takes the most frequent one for all pairs, so others
  are part of `up`.
  """
  pairs = [pair for pairs in found.values() for pair in pairs]
  alpha = Counter(pair.alpha for pair in pairs).most_common(1)[0][0]
  tensors = {}
  for pair in pairs:
    is_other = pair.alpha != alpha
    up = pair.up * np.float32(pair.alpha / alpha) if is_other else pair.up
    tensors[f"{pair.kohya}.lora_down.weight"] = pair.down
    tensors[f"{pair.kohya}.lora_up.weight"] = up
    tensors[f"{pair.kohya}.alpha"] = np.float32(alpha).reshape(())
  return tensors, {"format": "pt"}


def _as_peft(found: Found) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  """With r, alpha and the modules' names in the metadata, by network."""
  tensors, config = {}, {}
  for network, pairs in found.items():
    for pair in pairs:
      name = f"{network}.{_wrapped(pair.module)}"
      tensors[f"{name}.lora_A.weight"] = pair.down
      tensors[f"{name}.lora_B.weight"] = pair.up
    of_network = _adapter_config(pairs)
    config |= {f"{network}.{key}": value for key, value in of_network.items()}
  return tensors, {"format": "pt", "lora_adapter_metadata": json.dumps(config)}


def _adapter_config(pairs: Sequence[Factors]) -> dict[str, Any]:
  """The most frequent r and alpha, and patterns of the modules of others.

  A pattern is a module's name, which ends no other module's. diffusers 0.36
  needs both keys, be they empty.
  """
  rank = Counter(pair.rank for pair in pairs).most_common(1)[0][0]
  alpha = Counter(pair.alpha for pair in pairs).most_common(1)[0][0]
  config: dict[str, Any] = {"r": rank, "lora_alpha": alpha}
  config["target_modules"] = [pair.module for pair in pairs]
  patterns = {
    "rank_pattern": {p.module: p.rank for p in pairs if p.rank != rank},
    "alpha_pattern": {p.module: p.alpha for p in pairs if p.alpha != alpha},
  }
  return config | patterns


def pairs_of(
  factors: Mapping[str, Any], path: Path = ()
) -> Iterator[tuple[Path, tuple[np.ndarray, np.ndarray]]]:
  """(path, (down, up)) of every adapted kernel."""
  if factors.keys() == FACTORS:
    yield (
      path,
      (np.asarray(factors["lora_down"]), np.asarray(factors["lora_up"])),
    )
    return
  for name, part in factors.items():
    yield from pairs_of(part, (*path, name))


def _torch_layout(
  down: np.ndarray, up: np.ndarray, row: Row
) -> tuple[np.ndarray, np.ndarray]:
  """[r i ...] and [o r ...] from Flax's [... i r] and [r o]."""
  back = LAYOUTS[row.layout].to_foreign
  window = (1,) * (down.ndim - 2)
  return (
    np.ascontiguousarray(back(down)),
    np.ascontiguousarray(back(up.reshape(*window, *up.shape))),
  )
