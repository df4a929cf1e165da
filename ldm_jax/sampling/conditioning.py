"""A request's conditions as the arrays that a model's conditioners read."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence

import numpy as np

from ldm_jax.data.text.prompt_weighting import (
  WeightedPrompt,
  parse_prompt_weights,
)
from ldm_jax.errors import ConfigError
from ldm_jax.loaded_model import LoadedModel
from ldm_jax.nn.conditioners.clip_embedder import ClipEmbedder
from ldm_jax.nn.conditioners.conditioner import ConcatConditioner
from ldm_jax.nn.conditioners.embedders import (
  ClassEmbedder,
  LayoutEmbedder,
  SizeEmbedder,
  TextEmbedder,
)
from ldm_jax.nn.conditioners.spatial import (
  DepthMap,
  NeighbourEmbeddings,
  SegmentationEmbedder,
)
from ldm_jax.sampling.inputs.condition_inputs import own_condition
from ldm_jax.sampling.sampling_config import Conditioning

logger = logging.getLogger(__name__)

MAX_CHARACTERS = 10_000  # of a prompt
# Aesthetic scores, positive and negative, of SDXL's refiner (its config).
AESTHETIC_SCORES = (6.0, 2.5)


@dataclasses.dataclass(frozen=True)
class ConditionInputs:
  """Conditions of a batch of images.

  Attributes:
    prompts: one per image; empty if there are none.
    negative_prompts: one per image; None is unconditional.
    class_label: of all images, or None.
    height, width: of the images, in pixels.
    emphasis: read (word:1.3) and [word] in prompts as weights.
    segmap: a map of classes, [height width].
    layout: boxes, rows of x0, y0, x1, y1 in [0, 1] and a class.
    neighbours: rows of embeddings.
    depth: [height width], -1 to 1, the nearest 1.
    chunks: of CLIP's prompts at least, each of 75 tokens.
    arrays: of one example, for user-defined conditioners.
  """

  prompts: Sequence[str]
  negative_prompts: Sequence[str | None]
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

  Raises:
    ConfigError: the model has no conditioner for a condition, or needs one.
  """
  _check_kinds(loaded, inputs)
  weighted = None
  if inputs.emphasis:
    inputs, weighted = _without_weights(inputs)
  raw, null = ({}, {}), ({}, {})
  for part in loaded.model.conditioners:
    if isinstance(part, ConcatConditioner):
      continue  # they read images; see initial_latents.py
    encode = _ENCODERS.get(type(part), own_condition)
    sides = encode(loaded, part, inputs)
    for i, (array, is_null) in enumerate(sides):
      raw[i][part.input_key], null[i][part.input_key] = array, is_null
  positive, negative = map(Conditioning, raw, null)
  if weighted is None:
    return positive, negative
  return _with_weights(loaded, (positive, negative), weighted)


def _check_kinds(loaded: LoadedModel, inputs: ConditionInputs) -> None:
  """Raises ConfigError for a condition that the model does not take."""
  kinds = {type(part) for part in loaded.model.conditioners}
  if any(inputs.prompts) and not kinds & {TextEmbedder, ClipEmbedder}:
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


def _without_weights(
  inputs: ConditionInputs,
) -> tuple[ConditionInputs, tuple[list[WeightedPrompt], list[WeightedPrompt]]]:
  """The inputs without brackets, and the weights of either side."""
  sides = tuple(
    [parse_prompt_weights(text) for text in side] for side in _texts(inputs)
  )
  prompts, negatives = ([each.text for each in side] for side in sides)
  negatives = [
    None if given is None else text
    for given, text in zip(inputs.negative_prompts, negatives, strict=True)
  ]
  plain = dataclasses.replace(
    inputs, prompts=prompts, negative_prompts=negatives
  )
  return plain, sides


def _with_weights(
  loaded: LoadedModel,
  sides: tuple[Conditioning, Conditioning],
  weighted: tuple[list[WeightedPrompt], list[WeightedPrompt]],
) -> tuple[Conditioning, Conditioning]:
  """Both sides with the weights of their tokens, and the empty prompt."""
  (part,) = (
    part
    for part in loaded.model.conditioners
    if isinstance(part, TextEmbedder | ClipEmbedder)
  )
  tokenizer, name, count = loaded.tokenizer, part.input_key, len(weighted[0])
  rows = tokenizer.token_weights([*weighted[0], *weighted[1]])
  length = sides[0].raw[name].shape[-1]
  rows = np.pad(
    rows, [(0, 0), (0, length - rows.shape[1])], constant_values=1.0
  )
  return tuple(
    dataclasses.replace(
      side,
      weights=rows[i * count : (i + 1) * count],
      empty=side.raw | {name: tokenizer.empty_like(side.raw[name])},
    )
    for i, side in enumerate(sides)
  )


def _texts(inputs: ConditionInputs) -> tuple[list[str], list[str]]:
  """Prompts and negative prompts, one of each per image."""
  prompts = list(inputs.prompts) or [""] * inputs.count
  negatives = [text or "" for text in inputs.negative_prompts]
  for text in dict.fromkeys([*prompts, *negatives]):
    if len(text) > MAX_CHARACTERS:
      raise ConfigError(
        f"a prompt has {len(text)} characters; at most {MAX_CHARACTERS} are "
        "allowed"
      )
  return prompts, negatives


def _text(loaded, part, inputs):
  """Ids for a text encoder of fixed length; longer prompts are cut."""
  sides = []
  for texts in _texts(inputs):
    for text in dict.fromkeys(texts):
      if unknown := loaded.tokenizer.unknown(text):
        names = ", ".join(unknown)
        logger.warning("the tokenizer has no token for %s (%r)", names, text)
      (lost,) = loaded.tokenizer.cut([text])
      if lost:
        logger.warning(
          "the last %d tokens of %r are beyond the length of the text encoder",
          lost,
          text,
        )
    is_null = np.asarray([not text.strip() for text in texts])
    sides.append((loaded.tokenizer.encode(texts), is_null))
  return sides


def _clip(loaded, part, inputs):
  """Ids for CLIP; both sides get the chunks that the longest prompt needs."""
  if loaded.tokenizer is None:
    raise ConfigError(
      "the model comes without a tokenizer; give a folder (--tokenizer) with "
      "vocab.json and merges.txt, or tokenizer.json (CLIP's, as in the "
      "tokenizer folder of any Stable Diffusion model)"
    )
  texts, negatives = _texts(inputs)
  ids = loaded.tokenizer.encode([*texts, *negatives])
  chunk = loaded.tokenizer.tokens_per_chunk + 2  # begin and end
  if (missing := inputs.chunks - ids.shape[2] // chunk) > 0:
    empty = loaded.tokenizer.empty_like(ids)[:, :, :chunk]
    ids = np.concatenate([ids, *[empty] * missing], axis=2)
  is_null = np.asarray([text is None for text in inputs.negative_prompts])
  count = inputs.count
  return (ids[:count], np.zeros(count, bool)), (ids[count:], is_null)


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
  TextEmbedder: _text,
  ClipEmbedder: _clip,
  ClassEmbedder: _class,
  SizeEmbedder: _sizes,
  SegmentationEmbedder: _segmentation,
  DepthMap: _depth,
  LayoutEmbedder: _layout,
  NeighbourEmbeddings: _neighbours,
}
