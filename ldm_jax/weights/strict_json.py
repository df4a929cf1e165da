"""JSON of foreign files: no name stands twice in one object."""

import json
from typing import Any

from ldm_jax.errors import WeightsError


def parse_json(text: bytes) -> Any:
  """The value that the text stands for.

  Raises:
    WeightsError: it is not JSON, is nested too deeply or repeats a name.
  """
  try:
    return json.loads(text.decode(), object_pairs_hook=_unique)
  except WeightsError:
    raise
  except (ValueError, RecursionError) as error:
    raise WeightsError(f"its JSON is malformed ({error})") from error


def _unique(pairs):
  made = {}
  for name, value in pairs:
    if name in made:
      raise WeightsError(f"{name[:200]!r} stands twice in its JSON")
    made[name] = value
  return made
