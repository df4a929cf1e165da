"""Labels of a folder's images from metadata files: numbers, or names."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ldm_jax.errors import DataError


class Labels(NamedTuple):
  """Labels by the relative name of an image.

  Attributes:
    numbers: of the images.
    classes: the sorted names in whose order they are numbered; () if the
      metadata has numbers.
  """

  numbers: Mapping[str, int]
  classes: tuple[str, ...] = ()


def numbered(
  found: Mapping[str, Any], images: Sequence[str], folder: str
) -> Labels:
  """The labels of all images.

  Args:
    found: a whole number or a name by image; digits, as a CSV has them, are a
      number if all labels are.
    images: that need one.
    folder: for messages.

  Raises:
    DataError: an image has none, or one is neither a number nor a name.
  """
  missing = [name for name in images if found.get(name) in (None, "")]
  if missing:
    raise DataError(
      f"the metadata of {folder} has labels for {len(images) - len(missing)} "
      f"of {len(images)} images; {missing[0]} is the first without"
    )
  if all(_is_number(value) for value in found.values()):
    return Labels({name: int(value) for name, value in found.items()})
  others = [v for v in found.values() if not isinstance(v, str)]
  if others:
    raise DataError(
      f"the metadata of {folder} has the label {str(others[0])[:60]!r}; "
      "expected whole numbers from 0, or names, for all images"
    )
  classes = tuple(sorted(set(found.values())))
  places = {name: place for place, name in enumerate(classes)}
  return Labels({n: places[value] for n, value in found.items()}, classes)


def _is_number(value: Any) -> bool:
  if isinstance(value, str):
    return value.isascii() and value.isdigit() and len(value) < 10
  return type(value) is int and 0 <= value < 2**31
