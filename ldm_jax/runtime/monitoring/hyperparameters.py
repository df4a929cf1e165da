"""A run's settings as flat pairs of names and scalars, for trackers."""

import json
import os
from collections.abc import Iterator
from typing import Any

from ldm_jax.errors import ConfigError
from ldm_jax.files.strict_json import read_object

Scalar = str | int | float | bool | None

LONGEST = 250  # characters of a value; MLflow's older servers take no more


def hyperparameters(folder: str) -> dict[str, Scalar]:
  """The experiment in a run's config.json, by dotted path.

  A list is its JSON, cut to LONGEST characters if need be, unless it holds
  objects, which are numbered. {} for a folder that is no run.

  Raises:
    OSError: config.json cannot be read.
  """
  path = os.path.join(folder, "config.json")
  try:
    stored = read_object(path, ConfigError, has_constants=True)
  except FileNotFoundError:
    return {}
  except ConfigError as error:
    raise OSError(str(error)) from error
  return dict(_leaves(stored.get("experiment"), ""))


def _leaves(node: Any, path: str) -> Iterator[tuple[str, Scalar]]:
  if isinstance(node, list) and any(isinstance(each, dict) for each in node):
    node = dict(enumerate(node))
  if isinstance(node, dict):
    for name, value in node.items():
      yield from _leaves(value, f"{path}.{name}" if path else str(name))
    return
  if isinstance(node, list):
    node = json.dumps(node)
  yield path, node[:LONGEST] if isinstance(node, str) else node
