"""Reads networks from the names and shapes of a single file's tensors.

The names are CompVis's and OpenCLIP's, without each network's prefix. Shapes
show everything but the number of heads, which is 1 here, and of norm groups,
which is a divisor of 32 here; the caller replaces both.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from ldm_jax.errors import WeightsError
from ldm_jax.nn.conditioners.embedders import ClassEmbedder
from ldm_jax.nn.encoders.clip_text import ClipText
from ldm_jax.nn.encoders.text_encoder import TextEncoder
from ldm_jax.nn.unet import AttentionPlan, UNet
from ldm_jax.pretrained.configs.unet_reader import Inputs

Shape = tuple[int, ...]
GROUPS = 32  # of the norms of all published networks


class Shapes:
  """Shapes by name of the tensors under a prefix, without the prefix.

  Contains the names of modules (what is before a dot) as well as of tensors.
  """

  def __init__(self, shapes: Mapping[str, Shape], prefix: str):
    self._shapes = {
      name.removeprefix(prefix): shape
      for name, shape in shapes.items()
      if name.startswith(prefix)
    }
    self._modules = {
      name[:end]
      for name in self._shapes
      for end, letter in enumerate(name)
      if letter == "."
    }

  def __contains__(self, name: str) -> bool:
    return name in self._modules or name in self._shapes

  def __getitem__(self, name: str) -> Shape:
    """The shape of a weight.

    Raises:
      WeightsError: there is none, or it is not a weight.
    """
    shape = self._shapes.get(name)
    if shape is None or len(shape) < 2:
      raise WeightsError(
        f"{name} has shape {shape}; expected a weight of that name, without "
        "which the file is truncated or of an unknown kind"
      )
    return shape

  def count(self, name: str) -> int:
    """How many of "NAME.0", "NAME.1", ... there are."""
    number = 0
    while f"{name}.{number}" in self:
      number += 1
    return number


class _Grid(NamedTuple):
  """How a U-Net's lists of blocks divide into levels."""

  levels: int
  rows: int
  resampling: str

  def sites(self, level: int) -> list[str]:
    """Modules where a level's attention would be, in encoder and decoder."""
    below, above = level * self.rows, (self.levels - 1 - level) * self.rows
    return [f"input_blocks.{below + 1 + i}.1" for i in range(self.rows - 1)] + [
      f"output_blocks.{above + i}.1" for i in range(self.rows)
    ]


def _grid(shapes: Shapes) -> _Grid:
  """Every level of the decoder but the last ends with an upsampling."""
  total = shapes.count("output_blocks")
  names = lambda n, leaf: [f"output_blocks.{n}.{k}.{leaf}" for k in (1, 2)]
  has = lambda n, leaf: any(name in shapes for name in names(n, leaf))
  ends = [n for n in range(total) if has(n, "conv") or has(n, "in_layers")]
  rows, levels = ends[0] + 1 if ends else total, len(ends) + 1
  is_even = ends == [rows * (i + 1) - 1 for i in range(levels - 1)]
  if rows < 2 or not is_even or rows * levels != total:
    raise WeightsError(
      f"{total} output_blocks that double after {ends}; expected levels of "
      "one length, of two blocks at least"
    )
  is_block = bool(ends) and has(ends[0], "in_layers")
  return _Grid(levels, rows, "block" if is_block else "conv")


def _depth(shapes: Shapes, sites: Iterable[str], where: str) -> int:
  """How many transformer blocks there are at every site; 1 if plain."""
  depths = {
    1 if f"{site}.qkv" in shapes else shapes.count(f"{site}.transformer_blocks")
    for site in sites
  }
  if len(depths) > 1:
    raise WeightsError(
      f"{where} of the U-Net has transformers of depths {sorted(depths)}; "
      "expected one depth for all its blocks"
    )
  return depths.pop()


def read_unet(shapes: Shapes) -> tuple[UNet, Inputs]:
  """A U-Net of one head, and its inputs.

  Raises:
    WeightsError: its blocks are not those of a `UNet`.
  """
  grid = _grid(shapes)
  levels = range(grid.levels)
  block = lambda level: f"input_blocks.{level * grid.rows + 1}.0"
  widths = [shapes[f"{block(n)}.out_layers.3.weight"][0] for n in levels]
  channels, in_channels, *_ = shapes["input_blocks.0.0.weight"]
  depths = [_depth(shapes, grid.sites(n), f"level {n}") for n in levels]
  mid = "middle_block.1"
  is_plain = f"{mid}.qkv" in shapes
  if is_plain:
    plan = AttentionPlan((*depths,), 1, 1, kind="plain")
  else:
    plan = _transformers(shapes, grid, depths, widths)
  modulated = shapes["middle_block.0.emb_layers.1.weight"][0]
  vector, features = _vector(shapes)
  unet = UNet(
    shapes["out.2.weight"][0],
    channels,
    multipliers(widths, channels),
    grid.rows - 1,
    plan,
    vector=vector,
    groups=math.gcd(GROUPS, channels),
    modulation="add" if modulated == widths[-1] else "scale_shift",
    resampling=grid.resampling,
    guidance_width=_guidance_width(shapes),
  )
  context = f"{mid}.transformer_blocks.0.attn2.to_k.weight"
  return unet, Inputs(
    in_channels,
    context=None if is_plain else shapes[context][1],
    vector=features,
  )


def _guidance_width(shapes: Shapes) -> int | None:
  name = "time_embed.cond_proj.weight"
  return shapes[name][1] if name in shapes else None


def _vector(shapes: Shapes) -> tuple[str | None, int | None]:
  if "label_emb.weight" in shapes:
    return "table", shapes["label_emb.weight"][0]
  if "label_emb.0.0.weight" in shapes:
    return "mlp", shapes["label_emb.0.0.weight"][1]
  return None, None


def _transformers(
  shapes: Shapes, grid: _Grid, depths: Sequence[int], widths: Sequence[int]
) -> AttentionPlan:
  """A plan of one head.

  Where self-attention reads the context its keys have the context's width.
  Levels without attention show nothing and follow the others.
  """
  mid = "middle_block.1"
  key = "transformer_blocks.0.attn1.to_k.weight"
  is_cross = [
    depth > 0 and shapes[f"{grid.sites(level)[0]}.{key}"][1] != widths[level]
    for level, depth in enumerate(depths)
  ]
  cross_only = [c or d == 0 for c, d in zip(is_cross, depths, strict=True)]
  return AttentionPlan(
    (*depths,),
    _depth(shapes, [mid], "the middle"),
    1,
    is_linear=len(shapes[f"{mid}.proj_in.weight"]) == 2,
    cross_only=(*cross_only,) if any(is_cross) else (),
  )


def multipliers(widths: Sequence[int], channels: int) -> tuple[int, ...]:
  """Of the widths of levels, in the channels of a first convolution.

  Raises:
    WeightsError: a width is no multiple of them.
  """
  if any(width % channels for width in widths):
    raise WeightsError(
      f"levels of {list(widths)} channels after a first convolution of "
      f"{channels}; expected multiples of it"
    )
  return tuple(width // channels for width in widths)


def read_clip(shapes: Shapes) -> ClipText:
  """CLIP's own text encoder of one head, under transformers' names."""
  vocabulary, width, *_ = shapes["embeddings.token_embedding.weight"]
  hidden = shapes["encoder.layers.0.mlp.fc1.weight"][0]
  return ClipText(
    vocabulary,
    width,
    shapes.count("encoder.layers"),
    1,
    shapes["embeddings.position_embedding.weight"][0],
    None if hidden == 4 * width else hidden,
  )


def read_open_clip(shapes: Shapes) -> ClipText:
  """OpenCLIP's text encoder of one head; it projects if there is a matrix."""
  vocabulary, width, *_ = shapes["token_embedding.weight"]
  hidden = shapes["transformer.resblocks.0.mlp.c_fc.weight"][0]
  is_projected = "text_projection" in shapes
  return ClipText(
    vocabulary,
    width,
    shapes.count("transformer.resblocks"),
    1,
    shapes["positional_embedding"][0],
    None if hidden == 4 * width else hidden,
    "gelu",
    shapes["text_projection"][1] if is_projected else None,
  )


def read_text(shapes: Shapes) -> TextEncoder:
  """LDM's text encoder of one head; every other layer is attention."""
  vocabulary, width, *_ = shapes["transformer.token_emb.weight"]
  layers = "transformer.attn_layers.layers"
  return TextEncoder(
    vocabulary,
    width,
    shapes.count(layers) // 2,
    1,
    shapes[f"{layers}.0.1.to_q.weight"][0],
    shapes["transformer.pos_emb.emb.weight"][0],
  )


def read_classes(shapes: Shapes) -> ClassEmbedder:
  """LDM's class embedder; the last of its rows is the null class."""
  rows, width, *_ = shapes["embedding.weight"]
  return ClassEmbedder(rows - 1, width)
