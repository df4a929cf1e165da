"""A request, as the conditioners of an opened model hear it."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from ldm_jax.data.text.prompt_weighting import (
  WeightedPrompt,
  parse_prompt_weights,
)
from ldm_jax.errors import ConfigError
from ldm_jax.loaded_model import LoadedModel
from ldm_jax.nn.conditioners.clip_embedder import ClipEmbedder
from ldm_jax.nn.conditioners.conditioner import ConcatConditioner, has_null
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
from ldm_jax.sampling import Conditioning

LONGEST = 10_000  # characters of a prompt
SCORES = (6.0, 2.5)  # aesthetic scores that SDXL's refiner is told (its config)


@dataclasses.dataclass(frozen=True)
class ConditionInputs:
  """What is asked for, one of each per image.

  Attributes:
    texts: prompts; empty if there are none.
    negatives: what guidance leads away from; None says nothing.
    label: a class, or None.
    height, width: of the images, in pixels.
    is_weighted: read (word:1.3) and [word] in texts as weights.
    segmap: a map of classes, of the size of the images.
    boxes: of a layout, rows of x0, y0, x1, y1 in [0, 1] and a class.
    neighbours: rows of embeddings.
    depth: of every pixel, -1 to 1, the nearest 1.
  """

  texts: Sequence[str]
  negatives: Sequence[str | None]
  label: int | None
  height: int
  width: int
  is_weighted: bool = False
  segmap: np.ndarray | None = None
  boxes: np.ndarray | None = None
  neighbours: np.ndarray | None = None
  depth: np.ndarray | None = None


def encode_conditions(
  opened: LoadedModel, request: ConditionInputs, say: Callable[[str], None]
) -> tuple[Conditioning, Conditioning]:
  """What the conditioners are told, positive and negative.

  Args:
    say: is told what of a text is lost on the way.

  Raises:
    ConfigError: the model has no ear for it.
  """
  parts = opened.model.conditioners
  kinds = {type(part) for part in parts}
  if any(request.texts) and not kinds & {TextEmbedder, ClipEmbedder}:
    raise ConfigError("this model takes no text; leave --prompt out")
  for given, kind, told in (
    (request.label, ClassEmbedder, "knows no classes; leave --class_label out"),
    (request.segmap, SegmentationEmbedder, "reads no maps; leave --segmap out"),
    (request.boxes, LayoutEmbedder, "reads no layouts; leave --layout out"),
    (
      request.neighbours,
      NeighbourEmbeddings,
      "has no neighbours; leave --neighbours out",
    ),
    (request.depth, DepthMap, "reads no depth; leave --depth out"),
  ):
    if given is not None and kind not in kinds:
      raise ConfigError(f"this model {told}")
  weighted = None
  if request.is_weighted:
    request, weighted = _unweighted(request)
  raw, nothing = ({}, {}), ({}, {})
  for part in parts:
    if isinstance(part, ConcatConditioner):
      continue  # they read pictures; see sampling/start.py
    told = _EARS[type(part)](opened, part, request, say)
    for side, (array, is_null) in enumerate(told):
      raw[side][part.input_key], nothing[side][part.input_key] = array, is_null
  said = Conditioning(raw[0], nothing[0]), Conditioning(raw[1], nothing[1])
  return said if weighted is None else _weighed(opened, said, weighted)


def _unweighted(
  request: ConditionInputs,
) -> tuple[ConditionInputs, tuple[list[WeightedPrompt], list[WeightedPrompt]]]:
  """The request without brackets, and what they said of either side."""
  sides = tuple(
    [parse_prompt_weights(text) for text in side] for side in _texts(request)
  )
  texts, negatives = ([each.text for each in side] for side in sides)
  told = [
    None if given is None else text
    for given, text in zip(request.negatives, negatives, strict=True)
  ]
  return dataclasses.replace(request, texts=texts, negatives=told), sides


def _weighed(
  opened: LoadedModel,
  said: tuple[Conditioning, Conditioning],
  weighted: tuple[list[WeightedPrompt], list[WeightedPrompt]],
) -> tuple[Conditioning, Conditioning]:
  """Both sides with their weights, and what they are measured from."""
  (part,) = (
    part
    for part in opened.model.conditioners
    if isinstance(part, TextEmbedder | ClipEmbedder)
  )
  words, name, count = opened.words, part.input_key, len(weighted[0])
  rows = words.weigh([*weighted[0], *weighted[1]])
  return tuple(
    dataclasses.replace(
      side,
      weights=rows[i * count : (i + 1) * count],
      empty=side.raw | {name: words.silence(side.raw[name])},
    )
    for i, side in enumerate(said)
  )


def _texts(request: ConditionInputs) -> tuple[list[str], list[str]]:
  count = len(request.negatives)
  texts = list(request.texts) or [""] * count
  for text in dict.fromkeys([*texts, *filter(None, request.negatives)]):
    if len(text) > LONGEST:
      raise ConfigError(
        f"a prompt has {len(text)} characters; {LONGEST} are the most"
      )
  return texts, [text or "" for text in request.negatives]


def _hear_words(opened, part, request, say):
  """A text encoder of fixed length; longer texts are cut, and that is said."""
  told = []
  for texts in _texts(request):
    for text in dict.fromkeys(texts):
      if unknown := opened.words.unknown(text):
        say(f"note: the model does not know {', '.join(unknown)} ({text!r})")
      (lost,) = opened.words.cut([text])
      if lost:
        say(f"note: the last {lost} tokens of {text!r} are beyond its length")
    is_null = np.asarray([not text.strip() for text in texts])
    told.append((opened.words.encode(texts), is_null))
  return told


def _hear_prompts(opened, part, request, say):
  """Towers of CLIP: both sides get the chunks that the longest text needs."""
  if opened.words is None:
    raise ConfigError(
      "the model has no tokenizer beside it; give --tokenizer FOLDER with "
      "vocab.json and merges.txt, or tokenizer.json (CLIP's, as in the "
      "tokenizer folder of any Stable Diffusion model)"
    )
  texts, negatives = _texts(request)
  ids = opened.words.encode([*texts, *negatives])
  is_null = np.asarray([text is None for text in request.negatives])
  count = len(texts)
  return (ids[:count], np.zeros(count, bool)), (ids[count:], is_null)


def _hear_class(opened, part, request, say):
  label, count = request.label, len(request.negatives)
  if label is not None and not 0 <= label < part.classes:
    raise ConfigError(
      f"--class_label must be 0 to {part.classes - 1}, got {label}"
    )
  row = np.full(count, label or 0, np.int32)
  return (row, np.full(count, label is None)), (row, np.ones(count, bool))


def _hear_sizes(opened, part, request, say):
  """SDXL's own sizes: nothing cropped, original and target as asked."""
  count, size = len(request.negatives), [request.height, request.width]
  ends = [size, size] if part.ends_with == "target" else [[s] for s in SCORES]
  rows = [np.tile(np.float32([*size, 0, 0, *end]), (count, 1)) for end in ends]
  return [(row, np.zeros(count, bool)) for row in rows]


def _hear_map(opened, part, request, say):
  if request.segmap is None:
    raise ConfigError("this model reads a map of classes; give it --segmap")
  count, most = len(request.negatives), int(request.segmap.max())
  if most >= part.classes:
    raise ConfigError(
      f"--segmap has class {most}; this model knows 0 to {part.classes - 1}"
    )
  if part.joins == "context":
    _check_positions(part, request)
  return _hear_plane(part, request.segmap, count)


def _check_positions(part, request):
  """A map as tokens has a place for each cell, and so one size."""
  cells = request.height * request.width // 4**part.halvings
  if cells != part.positions:
    raise ConfigError(
      f"this model hears a map as {part.positions} tokens; images of "
      f"{request.height} x {request.width} would give {cells}: leave --height "
      "and --width out"
    )


def _hear_depth(opened, part, request, say):
  if request.depth is None:
    raise ConfigError("this model reads a map of depth; give it --depth")
  return _hear_plane(part, request.depth, len(request.negatives))


def _hear_plane(part, plane, count):
  """The same plane for every image; guided by its absence if it has a null."""
  row = np.broadcast_to(plane, (count, *plane.shape))
  return (row, np.zeros(count, bool)), (row, np.full(count, has_null(part)))


def _hear_layout(opened, part, request, say):
  count, spec = len(request.negatives), opened.layout
  boxes = np.zeros((0, 5)) if request.boxes is None else request.boxes
  row = np.tile(spec.encode(boxes), (count, 1))
  is_null = np.full(count, request.boxes is None)
  return (row, is_null), (row, np.ones(count, bool))


def _hear_neighbours(opened, part, request, say):
  count, rows = len(request.negatives), request.neighbours
  is_null = np.full(count, rows is None)
  if rows is None:
    rows = np.zeros((1, part.width), np.float32)
  if rows.shape[1:] != (part.width,):
    raise ConfigError(
      f"--neighbours of shape {rows.shape}; this model reads rows of "
      f"{part.width}"
    )
  rows = np.broadcast_to(rows, (count, *rows.shape))
  return (rows, is_null), (rows, np.ones(count, bool))


_EARS = {
  TextEmbedder: _hear_words,
  ClipEmbedder: _hear_prompts,
  ClassEmbedder: _hear_class,
  SizeEmbedder: _hear_sizes,
  SegmentationEmbedder: _hear_map,
  DepthMap: _hear_depth,
  LayoutEmbedder: _hear_layout,
  NeighbourEmbeddings: _hear_neighbours,
}
