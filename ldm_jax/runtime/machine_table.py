"""Numbers that were measured on a machine, kept in its cache folder."""

import hashlib
import importlib.metadata
import json
import logging
import math
import os
from collections.abc import Callable
from typing import Any

from ldm_jax.errors import ConfigError
from ldm_jax.files.atomic_writes import new_file, replace_file
from ldm_jax.files.strict_json import read_object
from ldm_jax.runtime.program_identity import VARIABLES, processor

logger = logging.getLogger(__name__)


def measured_number(
  folder: str | os.PathLike, name: str, measure: Callable[[], float]
) -> float:
  """The positive number `name` of this processor, with these libraries.

  It is measured once, so that later processes compute as the first did, and
  kept in `folder`/NAME-DIGEST.json; of processes that measure at once the first
  that has finished is followed. A file that cannot be read is written anew.
  """
  machine = _machine()
  text = json.dumps(machine, sort_keys=True).encode()
  digest = hashlib.sha256(text).hexdigest()[:16]
  path = os.path.join(folder, f"{name}-{digest}.json")
  found = _read(path)
  if found is not None:
    return found
  write = replace_file if os.path.exists(path) else new_file
  value = measure()
  try:
    with write(path, encoding="utf-8") as file:
      json.dump({"value": value, **machine}, file, indent=1)
  except FileExistsError:  # of a process that was faster
    return _read(path) or value
  except OSError as error:
    logger.debug(f"{path} cannot be written: {error}")
  logger.debug(f"{name} of this machine: {value:.3g}, kept in {path}")
  return value


def _machine() -> dict[str, Any]:
  """What the number depends on."""
  version = importlib.metadata.version
  return {
    "processor": processor(),
    "jax": version("jax"),
    "jaxlib": version("jaxlib"),
    **{name: os.environ.get(name) for name in VARIABLES},
  }


def _read(path: str) -> float | None:
  try:
    value = read_object(path, ConfigError).get("value")
  except FileNotFoundError:
    return None
  except ConfigError as error:
    logger.debug(f"{error}; it is written anew")
    return None
  is_number = isinstance(value, int | float) and not isinstance(value, bool)
  if is_number and math.isfinite(value) and value > 0:
    return float(value)
  logger.debug(f"{path} holds {value}, no positive number; it is written anew")
  return None
