"""Numbers that were measured on a machine, kept in its cache folder."""

import json
import logging
import math
import os
from collections.abc import Callable

import jax

from ldm_jax.errors import ConfigError
from ldm_jax.files.atomic_writes import replace_file
from ldm_jax.files.strict_json import read_object
from ldm_jax.runtime.program_identity import processor

logger = logging.getLogger(__name__)

NAME = "machine.json"


def measured_number(
  folder: str | os.PathLike, name: str, measure: Callable[[], float]
) -> float:
  """The positive number `name` of this processor and this jax.

  It is measured once, so that later processes compute as the first did, and
  kept in `folder`/machine.json. A table that cannot be read is written anew.
  """
  path = os.path.join(folder, NAME)
  table, key = _read(path), f"{processor()} jax {jax.__version__}"
  own = table.get(key)
  value = own.get(name) if isinstance(own, dict) else None
  is_number = isinstance(value, int | float) and not isinstance(value, bool)
  if is_number and math.isfinite(value) and value > 0:
    return float(value)
  value = measure()
  own = own if isinstance(own, dict) else {}
  try:
    with replace_file(path, encoding="utf-8") as file:
      json.dump(table | {key: own | {name: value}}, file, indent=1)
  except OSError as error:
    logger.debug(f"{path} cannot be written: {error}")
  logger.debug(f"{name} of this machine: {value:.3g}, kept in {path}")
  return value


def _read(path: str) -> dict:
  try:
    return read_object(path, ConfigError)
  except FileNotFoundError:
    return {}
  except ConfigError as error:
    logger.debug(f"{error}; it is written anew")
    return {}
