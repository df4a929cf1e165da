"""tensorflow-datasets by name, without TensorFlow."""

import dataclasses
import functools
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from ldm_jax.data.images import decode_image, rgb


@dataclasses.dataclass(frozen=True)
class Zoo:
  """A prepared data set of tensorflow-datasets, read at random.

  It must lie in `data_dir` already, in the array_record format: TensorFlow's
  own tfrecord cannot be read at random. Nothing is downloaded.

  Attributes:
    name: such as "tfds:mnist"; the prefix, a config and a version are optional.
    split: also a part, such as "train[:90%]".
    data_dir: where it was prepared; tfds' own folder if None.
    image, caption, label: the features to read, with / between levels. The
      usual names may be absent from the data set, others may not; None leaves
      one out. Of several captions the first is taken.

  Raises (all at first use):
    ValueError: not prepared, not readable at random, or no such feature.
    ImageError: a picture is bad; see `decode_image`.
  """

  name: str
  split: str = "train"
  data_dir: str | None = None
  image: str = "image"
  caption: str | None = "caption"
  label: str | None = "label"

  def __len__(self) -> int:
    return len(self._data)

  def __getitem__(self, index: int) -> dict[str, Any]:
    record = self._data[index]
    where = f"{self.name}[{self.split}] {index}"
    item: dict[str, Any] = {"image": _pixels(_at(record, self.image), where)}
    if self.caption in self._features:
      item["caption"] = _text(_at(record, self.caption))
    if self.label in self._features:
      item["label"] = np.int32(_at(record, self.label))
    return item

  @functools.cached_property
  def classes(self) -> tuple[str, ...]:
    """The names of the labels, as far as the data set knows them."""
    return tuple(getattr(self._features.get(self.label), "names", None) or ())

  @functools.cached_property
  def _features(self) -> dict[str, Any]:
    """{path: feature} of those of our three that the data set has."""
    features = _leaves(self._builder.info.features)
    ours = self.image, self.caption, self.label
    return {path: features[path] for path in ours if path in features}

  @functools.cached_property
  def _builder(self) -> Any:
    import tensorflow_datasets as tfds

    try:
      builder = tfds.builder(self._plain_name, data_dir=self.data_dir)
    except Exception as error:  # tfds raises its own, import and value errors
      detail = " ".join(str(error).partition("\nAvail")[0].split())[:200]
      raise ValueError(
        f"tensorflow-datasets cannot open {self.name!r}: {detail}"
      ) from error
    if not builder.data_path.exists():
      raise ValueError(
        f"{self.name} is not prepared in {builder.data_path}, and nothing is "
        f"downloaded here; {self._recipe}"
      )
    _check_features(self, _leaves(builder.info.features))
    return builder

  @functools.cached_property
  def _data(self) -> Sequence[Any]:
    import tensorflow_datasets as tfds

    builder, images = self._builder, tfds.features.Image
    # Our own decoder knows transparency, and names the record that is bad;
    # images that nobody asked for stay undecoded.
    decoders = {
      name: tfds.decode.SkipDecoding()
      for name, feature in builder.info.features.items()
      if isinstance(feature, images)
    }
    try:
      return builder.as_data_source(split=self.split, decoders=decoders)
    except NotImplementedError as error:
      raise ValueError(
        f"{self.name} was prepared in a format that cannot be read at random; "
        f"{self._recipe}"
      ) from error
    except ValueError as error:
      raise ValueError(
        f"{self.name} has no split {self.split!r}; "
        f"it has {', '.join(sorted(builder.info.splits))}"
      ) from error

  @property
  def _recipe(self) -> str:
    place = f", data_dir={self.data_dir!r}" if self.data_dir else ""
    return (
      f"prepare it by tfds.builder({self._plain_name!r}{place}, "
      'file_format="array_record").download_and_prepare()'
    )

  @property
  def _plain_name(self) -> str:
    return self.name.removeprefix("tfds:")


def _check_features(zoo: Zoo, features: dict[str, Any]) -> None:
  """Only the usual caption and label may be absent; others were asked for."""
  for field in dataclasses.fields(zoo)[3:]:
    wanted = getattr(zoo, field.name)
    usual = wanted == field.default and field.name != "image"
    if wanted not in features and wanted is not None and not usual:
      raise ValueError(
        f"{zoo.name} has no feature {wanted!r} for {field.name}; "
        f"it has {', '.join(sorted(features))}"
      )


def _leaves(feature: Any, path: str = "") -> dict[str, Any]:
  """{path: feature} of a tree of features, with / between its levels."""
  inner = getattr(feature, "feature", feature)  # a Sequence holds another
  if not hasattr(inner, "items"):
    return {path: feature}
  leaves = {}
  for name, below in inner.items():
    leaves |= _leaves(below, f"{path}/{name}" if path else name)
  return leaves


def _at(tree: Any, path: str) -> Any:
  for name in path.split("/"):
    tree = tree[name]
  return tree


def _pixels(value: Any, where: str) -> np.ndarray:
  if isinstance(value, bytes):
    return decode_image(io.BytesIO(value), where)
  return rgb(np.asarray(value), where)


def _text(value: Any) -> str:
  """The text, or the first of several, or "" of none."""
  while isinstance(value, list | tuple | np.ndarray):
    value = value[0] if len(value) else ""
  return value.decode("utf-8") if isinstance(value, bytes) else str(value)
