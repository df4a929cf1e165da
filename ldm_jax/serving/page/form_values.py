"""The values of a form's fields to requests, and back from metadata."""

import json
import os
from collections.abc import Collection, Mapping
from typing import Any

from ldm_jax.errors import ConfigError
from ldm_jax.files.strict_json import parse_json, parse_object
from ldm_jax.sampling.inputs.files import read_array
from ldm_jax.sampling.inputs.request_types import check_json_types
from ldm_jax.sampling.metadata import (
  FIELDS,
  FILES,
  FOLDERS,
  UNWRITTEN,
  read_metadata,
)
from ldm_jax.sampling.request import GenerationRequest, Replay

OTHER = "other"  # the form's field of those that have none of their own
ARRAYS = "conditions."  # begins the fields of user-defined conditioners
SEED = "seed"  # is text: a browser's numbers have 53 bits

# Not to be written as JSON: files of the server, and what an image never is.
_REFUSED = {*FILES, *FOLDERS, *UNWRITTEN, "conditions"} - {"layout", "num"}

# Of how an image came about, which is not how it is changed.
_ORIGIN = {"width", "height", "outpaint", "variation", "interpolate"}
_ORIGIN |= {"index", "replay"}

# Of sliders, which cannot be empty; None leaves them as they are.
_OPTIONAL = {"strength", "noise_level", "variation", "interpolate"}
_OPTIONAL |= {"image_guidance_scale"}


def request_of_form(values: Mapping[str, Any]) -> GenerationRequest:
  """The request of a form's values by field; None and "" are left out.

  Args:
    values: "other" is JSON of further fields, which replace the form's;
      "seed" and "layout" are text.

  Raises:
    ConfigError: a value cannot be used.
  """
  is_empty = lambda value: (
    value is None or (isinstance(value, str) and not value)
  )
  given = {k: v for k, v in values.items() if not is_empty(v)}
  more = other_fields(given.pop(OTHER, "{}"))
  arrays = {k: read_array(v, k) for k, v in given.items() if is_array(k)}
  given = {k: v for k, v in given.items() if k not in arrays}
  neighbours = arrays.pop("neighbours", None)
  conditions = {k.removeprefix(ARRAYS): v for k, v in arrays.items()}
  more = {"neighbours": neighbours, "conditions": conditions or None} | more
  if SEED in given:
    given[SEED] = _whole_number(given[SEED])
  if isinstance(given.get("layout"), str):
    given["layout"] = parse_json(given["layout"], ConfigError)
  return GenerationRequest(**given | more)


def is_array(field: str) -> bool:
  """Whether a form's field is an .npy file."""
  return field == "neighbours" or field.startswith(ARRAYS)


def other_fields(text: str) -> dict[str, Any]:
  """Fields of a request, from JSON.

  Raises:
    ConfigError: it is no JSON, or no such field can be given in this way.
  """
  fields = parse_object(text, "other settings", ConfigError)
  for name in fields:
    if name not in FIELDS:
      raise ConfigError(f"other settings: there is no field {name!r}")
    if name in _REFUSED:
      raise ConfigError(f"other settings: {name} cannot be given there")
  for name, value in fields.items():
    if isinstance(value, list) and name != "layout":
      fields[name] = tuple(value)
  replay = fields.pop("replay", None)
  check_json_types(fields)
  if isinstance(fields.get("layout"), str):
    raise ConfigError("other settings: layout must be a list of boxes")
  if replay is not None:
    try:
      fields["replay"] = Replay(**replay)
    except TypeError as error:
      raise ConfigError(f"other settings: replay: {error}") from error
  return fields


def form_of_metadata(
  metadata: Mapping[str, Any], names: Collection[str]
) -> dict[str, Any]:
  """The values of a form's fields that make an image again.

  Inputs that are files are not among them: an image holds their hashes only.

  Args:
    metadata: of the image.
    names: of the form's fields.
  """
  default = GenerationRequest()
  fields = {n: v for n, v in metadata.items() if n in FIELDS - _REFUSED}
  replay = fields.pop("replay", None) or {}
  needs_replay = fields.get("rng") == "torch" or replay.get("chunks", 1) > 1
  values: dict[str, Any] = {"num": 1, SEED: str(fields.pop(SEED, ""))}
  if isinstance(fields.get("layout"), list) and "layout" in names:
    values["layout"] = json.dumps(fields.pop("layout"))
  more = {"replay": replay} if needs_replay else {}
  for name, value in fields.items():
    if value is None and name in _OPTIONAL:
      continue
    if name in names and not isinstance(value, list):
      values[name] = value
    elif not _is_default(value, getattr(default, name)):
      more[name] = value
  shown = {name: value for name, value in values.items() if name in names}
  return shown | {OTHER: json.dumps(more) if more else ""}


def form_for_image(
  metadata: Mapping[str, Any], names: Collection[str]
) -> dict[str, Any]:
  """The values of a form whose input is an image that has these settings.

  They are the image's own but for its size, which the image brings along, and
  for its place in a series of images.

  Args:
    metadata: of the image; {} if it has none.
    names: of the form's fields.
  """
  if not metadata:
    return {}
  kept = {k: v for k, v in metadata.items() if k not in _ORIGIN}
  if isinstance(kept.get("prompt"), list):  # of an interpolation
    kept["prompt"] = kept["prompt"][0]
  empty = dict.fromkeys(("width", "height", "outpaint"))
  values = {name: value for name, value in empty.items() if name in names}
  return form_of_metadata(kept, names) | values


def metadata_of(path: str | os.PathLike | None) -> dict[str, Any]:
  """The metadata of an image that was given to the page.

  Raises:
    ConfigError: there is no image, or it holds none.
  """
  if path is None:
    raise ConfigError("give an image that ldm_jax made")
  try:
    return read_metadata(path)
  except ConfigError as error:
    name = f"the image {os.path.basename(path)!r}"
    raise ConfigError(str(error).replace(os.fspath(path), name)) from error


def whole_numbers(text: str, name: str, count: int) -> tuple[int, ...]:
  """`count` whole numbers that are separated by commas.

  Raises:
    ConfigError: they are not.
  """
  try:
    found = tuple(int(part) for part in text.split(","))
  except ValueError:
    found = ()
  if len(found) != count:
    raise ConfigError(f"{name} takes {count} whole numbers, got {text!r}")
  return found


def _is_default(value: Any, default: Any) -> bool:
  is_sequence = isinstance(default, tuple) and isinstance(value, list)
  return value == (list(default) if is_sequence else default)


def _whole_number(text: str | int) -> int:
  try:
    return int(text)
  except ValueError:
    raise ConfigError(f"seed must be a whole number, got {text!r}") from None
