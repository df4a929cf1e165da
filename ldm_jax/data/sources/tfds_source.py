"""Data sets of tensorflow-datasets, read without TensorFlow."""

import dataclasses
import functools
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from ldm_jax.data.annotations import pad_boxes
from ldm_jax.data.images import decode_image, rgb
from ldm_jax.data.open_images import open_image, orientation, upright
from ldm_jax.data.sources.tfds_features import check_features
from ldm_jax.errors import ConfigError
from ldm_jax.fields.limits import Count


@dataclasses.dataclass(frozen=True)
class TfdsSource:
  """A prepared data set of tensorflow-datasets, with random access.

  It must be in `data_dir` already, in the array_record format: tfrecord has no
  random access. Nothing is downloaded.

  `tfds_source` knows the features of common data sets.

  Attributes:
    name: such as "tfds:mnist"; the prefix, a config and a version are optional.
    split: a split or a part of one, such as "train[:90%]".
    data_dir: where it was prepared; tfds' default folder if None.
    image, caption, label: the features to read, with / between levels. The
      default caption and label may be missing in the data set, others may not;
      None leaves one out. If there are several captions, the first is taken.
    segmap: a feature of one channel of classes; or of COCO's panoptic colours,
      together with the feature "panoptic_objects".
    boxes: a sequence with bbox and label, such as "objects".
    objects: rows of "boxes"; objects beyond them are left out.

  Raises (all at first use):
    ConfigError: not prepared, no random access, or no such split or feature.
    ImageError: an image is bad; see `decode_image`.
  """

  name: str
  split: str = "train"
  data_dir: str | None = None
  image: str = "image"
  caption: str | None = "caption"
  label: str | None = "label"
  segmap: str | None = None
  boxes: str | None = None
  objects: Count = 30

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
    if self.segmap is not None:
      item["segmap"] = self._map(record, where)
    if self.boxes is not None:
      objects = _at(record, self.boxes)
      boxes = _boxes(objects["bbox"], objects["label"])
      item["boxes"] = pad_boxes(boxes, self.objects)
    return item

  def _map(self, record: Any, where: str) -> UInt8[np.ndarray, "h w"]:
    """Classes of pixels; in COCO's panoptic maps 0 is unlabelled."""
    value = _at(record, self.segmap)
    if isinstance(value, bytes):
      value = _plane(value, where)
    value = np.asarray(value)
    if value.ndim == 3 and value.shape[2] == 1:
      value = value[:, :, 0]
    if value.ndim == 2:
      return value.astype(np.uint8)
    objects = _at(record, "panoptic_objects")
    ids = value.astype(np.uint32) @ np.uint32([1, 256, 65536])
    segmap = np.zeros(ids.shape, np.uint8)
    for number, label in zip(objects["id"], objects["label"], strict=True):
      segmap[ids == number] = label + 1
    return segmap

  @functools.cached_property
  def classes(self) -> tuple[str, ...]:
    """The names of the labels, or () if the data set has none."""
    return tuple(getattr(self._features.get(self.label), "names", None) or ())

  @functools.cached_property
  def _features(self) -> dict[str, Any]:
    """{path: feature} of the features to read that the data set has."""
    features = _leaves(self._builder.info.features)
    ours = self.image, self.caption, self.label, self.segmap
    return {path: features[path] for path in ours if path in features}

  @functools.cached_property
  def _builder(self) -> Any:
    import tensorflow_datasets as tfds

    check_features(self._plain_name, self.data_dir)
    try:
      builder = tfds.builder(self._plain_name, data_dir=self.data_dir)
    except Exception as error:  # tfds raises its own, import and value errors
      detail = " ".join(str(error).partition("\nAvail")[0].split())[:200]
      raise ConfigError(
        f"tensorflow-datasets cannot open {self.name!r}: {detail}"
      ) from error
    if not builder.data_path.exists():
      raise ConfigError(
        f"{self.name} is not prepared in {builder.data_path}, and nothing is "
        f"downloaded here; {self._recipe}"
      )
    _check_features(self, _leaves(builder.info.features))
    return builder

  @functools.cached_property
  def _data(self) -> Sequence[Any]:
    import tensorflow_datasets as tfds

    builder, images = self._builder, tfds.features.Image
    # decode_image handles transparency and names the bad record; features that
    # are not read stay undecoded.
    decoders = {
      name: tfds.decode.SkipDecoding()
      for name, feature in builder.info.features.items()
      if isinstance(feature, images)
    }
    try:
      return builder.as_data_source(split=self.split, decoders=decoders)
    except NotImplementedError as error:
      raise ConfigError(
        f"{self.name} was prepared in a format without random access; "
        f"{self._recipe}"
      ) from error
    except ValueError as error:
      raise ConfigError(
        f"{self.name} has no split {self.split!r}; "
        f"it has {', '.join(sorted(builder.info.splits))}"
      ) from error

  @property
  def _recipe(self) -> str:
    folder = f", data_dir={self.data_dir!r}" if self.data_dir else ""
    return (
      f"prepare it by tfds.builder({self._plain_name!r}{folder}, "
      'file_format="array_record").download_and_prepare()'
    )

  @property
  def _plain_name(self) -> str:
    return self.name.removeprefix("tfds:")


# Features of common data sets that have other names than TfdsSource's defaults.
KNOWN: dict[str, dict[str, Any]] = {
  "imagenet2012": {"caption": None},
  "imagenette": {"caption": None},
  "places365_small": {"caption": None},
  "celeb_a_hq": {"caption": None, "label": None},
  "lsun": {"caption": None, "label": None},
  "coco_captions": {"caption": "captions/text", "label": None},
  "coco": {"boxes": "objects", "caption": None, "label": None},
  "coco/2017_panoptic": {
    "segmap": "panoptic_image", "caption": None, "label": None,
  },
  "open_images_v4": {"boxes": "bobjects", "caption": None, "label": None},
  "cityscapes": {
    "image": "image_left", "segmap": "segmentation_label", "caption": None,
    "label": None,
  },
  "scene_parse150": {"segmap": "annotation", "caption": None, "label": None},
  "oxford_iiit_pet": {"segmap": "segmentation_mask", "caption": None},
}  # fmt: skip


def tfds_source(
  name: str,
  split: str = "train",
  data_dir: str | None = None,
  **features: Any,
) -> TfdsSource:
  """A data set of KNOWN, with the names of its features.

  Args:
    features: fields of TfdsSource that replace those of the table.

  Raises:
    ConfigError: it is not in the table.
  """
  plain = name.removeprefix("tfds:").partition(":")[0]
  fields = KNOWN.get(plain) or KNOWN.get(plain.partition("/")[0])
  if fields is None:
    raise ConfigError(
      f"{name!r} is none of {', '.join(KNOWN)}; name its features with "
      "TfdsSource"
    )
  return TfdsSource(name, split, data_dir, **(fields | features))


def _boxes(bbox: Any, labels: Any) -> Float[np.ndarray, "k 5"]:
  """From tensorflow-datasets' order: top, left, bottom, right."""
  corners = np.asarray(bbox, np.float64).reshape(-1, 4)[:, [1, 0, 3, 2]]
  labels = np.asarray(labels, np.float64).reshape(-1, 1)
  return np.concatenate([corners, labels], axis=1)


def _plane(value: bytes, where: str) -> np.ndarray:
  with open_image(io.BytesIO(value), f"the map of {where}") as image:
    image.load()
    return upright(image, orientation(image))


def _check_features(source: TfdsSource, features: dict[str, Any]) -> None:
  """Only the default caption and label may be missing in the data set."""
  names = {"image", "caption", "label", "segmap", "boxes"}
  for field in (f for f in dataclasses.fields(source) if f.name in names):
    wanted = getattr(source, field.name)
    if field.name == "boxes" and wanted is not None:
      wanted = f"{wanted}/bbox"
    is_default = wanted == field.default and field.name != "image"
    if wanted not in features and wanted is not None and not is_default:
      raise ConfigError(
        f"{source.name} has no feature {wanted!r} for {field.name}; "
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
