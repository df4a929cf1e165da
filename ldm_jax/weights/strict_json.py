"""JSON in which no object repeats a name."""

import json
from typing import Any

from ldm_jax.errors import WeightsError


def parse_json(text: bytes) -> Any:
  """Parses JSON.

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
  result = {}
  for name, value in pairs:
    if name in result:
      raise WeightsError(f"{name[:200]!r} is twice in its JSON")
    result[name] = value
  return result
