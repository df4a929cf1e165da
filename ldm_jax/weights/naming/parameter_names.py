"""Names and layouts of this package's parameters in other libraries."""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np

from ldm_jax.errors import WeightsError
from ldm_jax.weights.naming.convert import Row, Table, list_names, make_table
from ldm_jax.weights.naming.layouts import LAYOUTS, Part
from ldm_jax.weights.naming.name_tables import read_name_tables

NETWORKS = (
  "unet",
  "dit",
  "dit_labels",
  "mmdit",
  "flux",
  "autoencoder",
  "tiny_autoencoder",
  "dc_autoencoder",
  "clip",
  "open_clip",
  "t5",
  "clip_vision",
  "dinov2",
  "text",
  "classes",
)
NAMING_SCHEMES = ("diffusers", "compvis", "flax")
_WITHOUT_FLAX = (
  *("text", "classes", "tiny_autoencoder", "dc_autoencoder", "dinov2"),
  *("dit", "dit_labels", "mmdit", "flux", "t5"),
)

# Names of plain attention in diffusers before 0.15; its Flax autoencoder kept
# them.
_OLD_NAMES = {
  "to_q": "query",
  "to_k": "key",
  "to_v": "value",
  "to_out.0": "proj_attn",
}


@dataclasses.dataclass(frozen=True)
class Geometry:
  """What names depend on besides the paths and shapes of a network.

  Attributes:
    heads: number of heads at every level, or None if their width is fixed;
      only CompVis's plain attention in a U-Net needs one of the two.
    head_width: features of a head, or None if their number is fixed.
    vector: diffusers' name of the two layers of a U-Net with vector="mlp":
      "add_embedding" if its config has an addition_embed_type (SDXL),
      "class_embedding" if it has a class_embed_type.
  """

  heads: int | None = None
  head_width: int | None = None
  vector: Literal["add_embedding", "class_embedding"] = "add_embedding"

  def __post_init__(self):
    if self.heads is not None and self.head_width is not None:
      raise ValueError(
        "set one of heads (their number) and head_width, got "
        f"heads={self.heads} head_width={self.head_width}"
      )

  def count_heads(self, channels: int) -> int:
    """Number of heads of a level with `channels`.

    Raises:
      ValueError: neither number is known, or they do not divide.
    """
    count = self.heads or 0
    if self.head_width is not None:
      count = channels // self.head_width
    if count == 0 or channels % count:
      raise ValueError(
        f"{channels} channels of stacked q, k and v do not divide into heads="
        f"{self.heads} head_width={self.head_width}; give the Geometry what "
        "the network was built with"
      )
    return count


def name_table(
  network: str,
  scheme: str,
  shapes: Mapping[str, tuple[int, ...]],
  geometry: Geometry = Geometry(),
) -> Table:
  """The table of a network's parameters in a naming scheme.

  Args:
    network: one of NETWORKS. "clip" and "open_clip" are the same network here;
      single files have other names for OpenCLIP's text encoders.
    scheme: "diffusers" for folders (text encoders as in transformers, without
      the prefix "text_model."), "compvis" for single files (of CompVis,
      Stability and other authors, without the network's prefix), "flax" for
      the trees of diffusers' and transformers' Flax models, joined by "/"
      (also without "text_model/").
    shapes: of the parameters by path, as given by `convert.shapes`.

  Raises:
    ValueError: there is no such network or scheme, or a number of heads is
      needed that the geometry lacks.
    WeightsError: the scheme has no name for some of the parameters (they are
      listed with their shapes), or the same name for two.
  """
  column = _column(network, scheme)
  tables = read_name_tables("clip" if network == "open_clip" else network)
  numbers = _count(shapes) | {"vector": geometry.vector}
  rows, unknown = [], []
  for path, shape in shapes.items():
    found = tables.find(column, path, lambda own: _derive(numbers, own))
    if found is None:
      unknown.append(path)
    else:
      rows.append(_read_layout(Row(path, *found, tuple(shape)), geometry))
  if unknown:
    raise WeightsError(
      f"{network} parameters that {scheme} has no name for: "
      f"{list_names(sorted(unknown), shapes.get)}"
    )
  ignored = tables.ignore(column, numbers)
  if scheme == "flax":
    rows = [_to_flax(network, row) for row in rows]
    ignored = [pattern.replace(".", "/") for pattern in ignored]
  return make_table(rows, ignored)


def modern_names(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Tensors of diffusers before 0.15 under their present names.

  Plain attention, in autoencoders and unconditional U-Nets, had the names
  query, key, value, proj_attn. Other names stay; no tensor is copied.
  """
  modern = {f".{old}.": f".{new}." for new, old in _OLD_NAMES.items()}
  pattern = re.compile("|".join(map(re.escape, modern)))
  return {
    pattern.sub(lambda found: modern[found[0]], name): tensors[name]
    for name in tensors
  }


def _column(network: str, scheme: str) -> str:
  """The column of the tables; Flax names are derived from diffusers' ones."""
  if network not in NETWORKS or scheme not in NAMING_SCHEMES:
    raise ValueError(
      f"no network {network!r} in scheme {scheme!r}; choose one of "
      f"{', '.join(NETWORKS)} and one of {', '.join(NAMING_SCHEMES)}"
    )
  if scheme == "flax" and network in _WITHOUT_FLAX:
    raise ValueError(
      f"there are no Flax files of network {network!r}; choose another scheme"
    )
  # Single files name CLIP's text encoder as transformers does.
  is_compvis = scheme == "compvis" and network != "clip"
  return "compvis" if is_compvis else "diffusers"


def _count(shapes: Iterable[str]) -> dict[str, Any]:
  """Numbers of levels, blocks, ... of a network, read from its paths."""

  def found(pattern):
    matches = (re.match(pattern, path) for path in shapes)
    return {int(match[1]) for match in matches if match}

  count = lambda pattern: 1 + max(found(pattern), default=-1)
  has_blocks = any("_attention" in p and "/block_" in p for p in shapes)
  return {
    "levels": count(r"(?:\w+/)?(?:down|up)_(\d+)_block_"),
    "blocks": count(r"(?:\w+/)?down_\d+_block_(\d+)/"),
    "depth": count(r"block_(\d+)/"),
    "hints": count(r"hint_(\d+)/"),
    "attending": found(r"up_(\d+)_attention_"),
    "attention": "transformer" if has_blocks else "plain",
    "last": "dc_conv" if found(r"decoder/up_(0)_") else "dc_pixels",
  }


def _derive(numbers: Mapping[str, Any], own: dict[str, int]) -> dict[str, Any]:
  """The values of all names in braces, from a network's and a path's numbers.

  A level of CompVis's `input_blocks` and `output_blocks` has blocks + 1
  entries: of `input_blocks` the last one is the downsampling (the very first
  entry is conv_in); the upsampling is in the last one of `output_blocks`.
  """
  b, i = own.get("b", 0), own.get("i", numbers["blocks"])
  r = numbers["levels"] - 1 - b
  entries = numbers["blocks"] + 1
  return {
    **numbers,
    **own,
    "r": r,
    "in": 1 + b * entries + i,
    "out": r * entries + i,
    "slot": 2 if b in numbers["attending"] else 1,
    "even": 2 * i,
    "odd": 2 * i + 1,
    "hint": 2 * i + 2,
    "hints": 2 * numbers["hints"] + 2,
  }


def _read_layout(row: Row, geometry: Geometry) -> Row:
  """Parses a layout: NAME[|NAME], and "j/n", "j-k/n" or "j/n per head"."""
  names, *part = row.layout.split(" ", maxsplit=1)
  fits = lambda name: (
    LAYOUTS[name].ranks is None or (LAYOUTS[name].ranks[0] == len(row.shape))
  )
  layout = next(filter(fits, names.split("|")), None)
  if layout is None:
    raise WeightsError(
      f"{row.path} has shape {row.shape}, whose rank does not fit its layout "
      f"{names}"
    )
  if not part:
    return row._replace(layout=layout)
  numbers, *is_per_head = part[0].split(" ", maxsplit=1)
  indices, count = numbers.split("/")
  first, _, last = indices.partition("-")
  span = int(last or first) - int(first) + 1
  heads = geometry.count_heads(row.shape[-1]) if is_per_head else 1
  part = Part(int(first), int(count), heads, span)
  return row._replace(layout=layout, part=part)


def _to_flax(network: str, row: Row) -> Row:
  """The row of a diffusers parameter for diffusers' Flax models."""
  module, _, leaf = row.foreign_name.rpartition(".")
  if leaf == "weight":
    is_scale = row.path.endswith("/scale")
    plain = "scale" if is_scale else "embedding"
    leaf = plain if row.layout == "same" else "kernel"
  if network == "autoencoder":
    for new, old in _OLD_NAMES.items():
      if module.endswith(f".{new}"):
        module = module.removesuffix(new) + old
  if network in ("unet", "autoencoder"):
    module = re.sub(r"\.(\d+)(?=\.|$)", r"_\1", module)
  name = f"{module}.{leaf}".replace(".", "/")
  return row._replace(foreign_name=name, layout="same", part=None)
