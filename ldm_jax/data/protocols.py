"""What a data set and a transform must provide, built-in or user-defined.

Both are Protocols: a class needs the methods below and no base class. A frozen
dataclass of any package that has them can be `Data.source`, `Data.validation`
or one of `Data.transforms`; its fields are then set in the config, and are
stored in the run's config.json.

  @dataclasses.dataclass(frozen=True)
  class Csv:                              # a Source
    path: str

    def __len__(self): return len(self._lines)

    def __getitem__(self, index):
      file, caption = self._lines[index]
      return {"image": read_image(file), "caption": caption}

    @functools.cached_property
    def _lines(self): ...

  @dataclasses.dataclass(frozen=True)
  class Luminance:                        # a Transform
    output_key = "luminance"

    def __call__(self, item, rng):
      return item["image"].mean(-1)
"""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class Source(Protocol):
  """A data set: a fixed number of examples, each a dict by its index.

  Arrays of an example, all optional but in every example or in none:

    image       uint8 [h, w, 3], RGB; sizes may differ if `Data.augment` is set
    caption     str; becomes "tokens", int32 [l], if there is a tokenizer, and
                "t5_tokens" if there is one for T5
    label       int32, the class
    segmap      uint8 [h, w], a class for every pixel
    boxes       float32 [k, 5]: x0, y0, x1, y1 in [0, 1] and a class; -1 pads
    moments     float32 [h, w, 2 c] in place of an image: posterior moments
    any other   an array that a conditioner or a transform reads by its name

  `source[i]` must depend on i alone: many threads call it, in any order, and
  again after a run is resumed. An image that cannot be used raises
  `errors.ImageError`; it is then replaced, see `SkipBadImages`. Open files at
  first use, not in the constructor: a config is built on machines without the
  data.

  Aspect-ratio buckets need one more attribute, `sizes`: int [n, 2], height and
  width of every image. Three others are optional: `names` of the examples and
  `classes`, names in the order of the labels, by which a change of the data is
  noticed when a run is resumed; and `path_of(index)`, for messages.
  """

  def __len__(self) -> int: ...

  def __getitem__(self, index: int, /) -> dict[str, Any]: ...


@runtime_checkable
class Transform(Protocol):
  """Adds an array to every example, such as a mask or a low-resolution copy.

  Called after the crop, with the arrays of the example so far (those of
  earlier transforms too) and a generator of its own. All randomness must come
  from `rng`, so that a resumed run sees the same batches.

  Attributes:
    output_key: the name of the new array; a class attribute or a field.
  """

  output_key: str

  def __call__(
    self, item: Mapping[str, Any], rng: np.random.Generator, /
  ) -> np.ndarray: ...
