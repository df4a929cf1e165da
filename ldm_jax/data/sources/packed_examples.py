"""One example of a packed data set, from its small files."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ldm_jax.data.annotations import ENDINGS, Member, read_annotation
from ldm_jax.data.images import EXTENSIONS, decode_image
from ldm_jax.data.sources.folder_captions import caption_of
from ldm_jax.errors import DataError
from ldm_jax.files.strict_json import parse_object

IMAGES = frozenset(ending.removeprefix(".") for ending in EXTENSIONS)
ANNOTATIONS = {ending.removeprefix("."): key for key, ending in ENDINGS.items()}
READ = (*IMAGES, *ANNOTATIONS, "txt", "cls", "json")

Files = Mapping[str, bytes]  # of an example: {ending: content}


def example(files: Files, name: str, objects: int = 30) -> dict[str, Any]:
  """The arrays of an example, and its caption.

  Args:
    name: of the example in error messages.
    objects: rows of "boxes".

  Raises:
    DataError: a file is malformed, or there is no image.
    ImageError: the image is bad.
  """
  image = image_of(files, name)
  item: dict[str, Any] = {"image": decode_image(image, str(image))}
  metadata = _metadata(files, name)
  if "caption" in metadata:
    item["caption"] = caption_of(metadata["caption"], name) or ""
  for key, kind in (("label", np.int32), ("score", np.float32)):
    if key in metadata:
      item[key] = kind(metadata[key])
  size = item["image"].shape[:2]
  for ending, key in ANNOTATIONS.items():
    if ending in files:
      member = Member(files[ending], f"{name}.{ending}")
      item[key] = read_annotation(key, member, size, objects)
  return item


def image_of(files: Files, name: str) -> Member:
  """The image of an example; raises DataError if it has none."""
  images = sorted(files.keys() & IMAGES)
  if not images:
    raise DataError(
      f"{name} has no image among {', '.join(sorted(files)) or 'nothing'}; "
      f"expected one of {' '.join(sorted(IMAGES))}"
    )
  return Member(files[images[0]], f"{name}.{images[0]}")


def _metadata(files: Files, name: str) -> dict[str, Any]:
  """Caption, label and score, of json, txt and cls files."""
  metadata: dict[str, Any] = {}
  try:
    if "json" in files:
      # img2dataset writes NaN for what its table lacks.
      entry = parse_object(
        files["json"], f"{name}.json", DataError, has_constants=True
      )
      metadata = {
        key: entry[key] for key in ("caption", "label", "score") if key in entry
      }
      if "text" in entry:
        metadata.setdefault("caption", entry["text"])
    if "txt" in files:
      metadata["caption"] = files["txt"].decode("utf-8-sig")
    if "cls" in files:
      metadata["label"] = int(files["cls"].decode("ascii"))
    _check_numbers(metadata)
  except DataError:
    raise
  except ValueError as error:
    raise DataError(
      f"{name}: txt must be UTF-8, cls a whole number and json an object: "
      f"{error}"
    ) from error
  return metadata


def _check_numbers(metadata: Mapping[str, Any]) -> None:
  """Raises ValueError unless label and score are numbers that can be stored."""
  label, score = metadata.get("label", 0), metadata.get("score", 0)
  if type(label) is not int or abs(label) >= 2**31:
    raise ValueError(f"label is {label!r}")
  if type(score) not in (int, float) or not abs(score) <= 1e38:
    raise ValueError(f"score is {score!r}")


def split_dotted(
  name: str, endings: Sequence[str]
) -> Mapping[str, Mapping[str, str]] | None:
  """Examples whose names hold dots: {name: {ending: ending in the tar}}.

  A WebDataset's name ends at the first dot, which makes one example of
  "v1.0/a.1.jpg" and "a.2.jpg", without any image. They are two. None where the
  endings have an image, or would have none either way.
  """
  if IMAGES & set(endings):
    return None
  found: dict[str, dict[str, str]] = {}
  for ending in endings:
    last = max(
      (k for k in READ if ending.endswith(f".{k}")), default=None, key=len
    )
    if last is not None:
      whole = f"{name}.{ending.removesuffix(f'.{last}')}"
      found.setdefault(whole, {})[last] = ending
  if not found or not all(IMAGES & set(files) for files in found.values()):
    return None
  return found
