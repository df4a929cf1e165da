"""A request's conditions as the arrays that a model's conditioners read."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import get_args

import numpy as np
from jaxtyping import Float

from ldm_jax.data.text.prompt_weighting import WeightedPrompt
from ldm_jax.errors import ConfigError
from ldm_jax.loaded_model import LoadedModel
from ldm_jax.nn.conditioners.conditioner import ConcatConditioner
from ldm_jax.nn.conditioners.embedders import (
  ClassEmbedder,
  LayoutEmbedder,
  SizeEmbedder,
)
from ldm_jax.nn.conditioners.spatial import (
  DepthMap,
  NeighbourEmbeddings,
  SegmentationEmbedder,
)
from ldm_jax.sampling.inputs.condition_inputs import own_condition
from ldm_jax.sampling.inputs.text_conditions import (
  PromptBatch,
  TextConditioner,
  with_texts,
)
from ldm_jax.sampling.sampling_config import Conditioning, PromptVariant

# Aesthetic scores, positive and negative, of SDXL's refiner (its config).
AESTHETIC_SCORES = (6.0, 2.5)


@dataclasses.dataclass(frozen=True)
class ConditionInputs:
  """Conditions of a batch of images.

  Attributes:
    prompts: one per image; empty if there are none. With weights, or texts.
    negative_prompts: one per image; None is unconditional.
    class_label: of all images, or None.
    height, width: of the images, in pixels.
    emphasis: use the weights of prompts, and read (word:1.3) and [word] in
      texts.
    segmap: a map of classes, [height width].
    layout: boxes, rows of x0, y0, x1, y1 in [0, 1] and a class.
    neighbours: rows of embeddings.
    depth: [height width], -1 to 1, the nearest 1.
    chunks: of CLIP's prompts at least, each of 75 tokens; for images of
      earlier versions, see `Replay`.
    arrays: of one example, for user-defined conditioners.
  """

  prompts: Sequence[str | WeightedPrompt]
  negative_prompts: Sequence[str | WeightedPrompt | None]
  class_label: int | None
  height: int
  width: int
  emphasis: bool = False
  segmap: np.ndarray | None = None
  layout: np.ndarray | None = None
  neighbours: np.ndarray | None = None
  depth: np.ndarray | None = None
  chunks: int = 1
  arrays: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

  @property
  def count(self) -> int:
    """Images."""
    return len(self.negative_prompts)


def encode_conditions(
  loaded: LoadedModel, inputs: ConditionInputs
) -> tuple[Conditioning, Conditioning]:
  """The conditioners' inputs, positive and negative; logs ignored text.

  Each side has the chunks that its longest prompt needs, repeated to one
  length; see `with_equal_lengths`.

  Raises:
    ConfigError: the model has no conditioner for a condition, or needs one.
  """
  (positive,), negative, _ = encode_variant(loaded, [inputs], None)
  return positive, negative


def encode_variant(
  loaded: LoadedModel,
  inputs: Sequence[ConditionInputs],
  weights: Float[np.ndarray, "n k"] | None,
) -> PromptVariant:
  """The inputs for several prompts that are composed, or for one.

  Args:
    inputs: one for each prompt; the negative side is that of the first.
    weights: of the prompts; None of one.

  Raises:
    ConfigError: see `encode_conditions`.
  """
  sides = []
  for each in inputs:
    _check_kinds(loaded, each)
    positive, negative = _encode_arrays(loaded, each)
    sides += [negative, positive] if not sides else [positive]
  first = inputs[0]
  prompts = PromptBatch(
    first.negative_prompts,
    [each.prompts or [""] * each.count for each in inputs],
    first.emphasis,
    first.chunks,
  )
  for part in loaded.model.conditioners:
    if isinstance(part, TextConditioner):
      sides = with_texts(loaded, part, prompts, sides)
  return PromptVariant(tuple(sides[1:]), sides[0], weights)


def _encode_arrays(
  loaded: LoadedModel, inputs: ConditionInputs
) -> tuple[Conditioning, Conditioning]:
  """All inputs but text and images."""
  raw, null = ({}, {}), ({}, {})
  for part in loaded.model.conditioners:
    if isinstance(part, ConcatConditioner | TextConditioner):
      continue  # images are read in initial_latents.py
    encode = _ENCODERS.get(type(part), own_condition)
    sides = encode(loaded, part, inputs)
    for i, (array, is_null) in enumerate(sides):
      raw[i][part.input_key], null[i][part.input_key] = array, is_null
  return tuple(map(Conditioning, raw, null))


def _check_kinds(loaded: LoadedModel, inputs: ConditionInputs) -> None:
  """Raises ConfigError for a condition that the model does not take."""
  kinds = {type(part) for part in loaded.model.conditioners}
  plain = [p if isinstance(p, str) else p.text for p in inputs.prompts]
  if any(plain) and not kinds & set(get_args(TextConditioner)):
    raise ConfigError("this model takes no text; leave prompt out")
  for name, kind, fact in (
    ("class_label", ClassEmbedder, "is not conditioned on classes"),
    ("segmap", SegmentationEmbedder, "takes no segmentation maps"),
    ("layout", LayoutEmbedder, "takes no layouts"),
    ("neighbours", NeighbourEmbeddings, "takes no neighbours"),
    ("depth", DepthMap, "takes no depth"),
  ):
    if getattr(inputs, name) is not None and kind not in kinds:
      raise ConfigError(f"this model {fact}; leave {name} out")


def _class(loaded, part, inputs):
  label, count = inputs.class_label, inputs.count
  if label is not None and not 0 <= label < part.classes:
    raise ConfigError(
      f"class_label must be 0 to {part.classes - 1}, got {label}"
    )
  row = np.full(count, label or 0, np.int32)
  return (row, np.full(count, label is None)), (row, np.ones(count, bool))


def _sizes(loaded, part, inputs):
  """SDXL's size conditioning: no crop, original and target size as asked."""
  count, size = inputs.count, [inputs.height, inputs.width]
  scores = [[score] for score in AESTHETIC_SCORES]
  ends = [size, size] if part.ends_with == "target" else scores
  rows = [np.tile(np.float32([*size, 0, 0, *end]), (count, 1)) for end in ends]
  return [(row, np.zeros(count, bool)) for row in rows]


def _segmentation(loaded, part, inputs):
  if inputs.segmap is None:
    raise ConfigError(
      "this model is conditioned on a segmentation map; give one (--segmap)"
    )
  most = int(inputs.segmap.max())
  if most >= part.classes:
    raise ConfigError(
      f"segmap has class {most}; this model has classes 0 to {part.classes - 1}"
    )
  cells = inputs.height * inputs.width // 4**part.halvings
  # A map as tokens has a position for each cell, and so one size.
  if part.joins == "context" and cells != part.positions:
    raise ConfigError(
      f"this model reads a map as {part.positions} tokens; images of "
      f"{inputs.height} x {inputs.width} would give {cells}: leave height and "
      "width out"
    )
  return _plane(part, inputs.segmap, inputs.count)


def _depth(loaded, part, inputs):
  if inputs.depth is None:
    raise ConfigError(
      "this model is conditioned on a depth map; give one (--depth)"
    )
  return _plane(part, inputs.depth, inputs.count)


def _plane(part, plane, count):
  """The same map for every image; the negative side may leave it out."""
  row = np.broadcast_to(plane, (count, *plane.shape))
  is_null = np.full(count, part.has_unconditional)
  return (row, np.zeros(count, bool)), (row, is_null)


def _layout(loaded, part, inputs):
  count = inputs.count
  boxes = np.zeros((0, 5)) if inputs.layout is None else inputs.layout
  row = np.tile(loaded.layout.encode(boxes), (count, 1))
  is_null = np.full(count, inputs.layout is None)
  return (row, is_null), (row, np.ones(count, bool))


def _neighbours(loaded, part, inputs):
  count, rows = inputs.count, inputs.neighbours
  is_null = np.full(count, rows is None)
  if rows is None:
    rows = np.zeros((1, part.width), np.float32)
  if rows.shape[1:] != (part.width,):
    raise ConfigError(
      f"neighbours of shape {rows.shape}; this model reads rows of {part.width}"
    )
  rows = np.broadcast_to(rows, (count, *rows.shape))
  return (rows, is_null), (rows, np.ones(count, bool))


# Each returns (array, where it is unconditional) of both sides.
_ENCODERS = {
  ClassEmbedder: _class,
  SizeEmbedder: _sizes,
  SegmentationEmbedder: _segmentation,
  DepthMap: _depth,
  LayoutEmbedder: _layout,
  NeighbourEmbeddings: _neighbours,
}
