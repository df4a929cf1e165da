"""Numbers as JSON can hold them."""

import math
from typing import Any


def json_value(value: Any) -> Any:
  """`value`, with floats at 7 digits and infinity or NaN as a string.

  JSON has no infinity and no NaN.
  """
  if isinstance(value, float):
    return float(f"{value:.7g}") if math.isfinite(value) else str(value)
  return value
