"""The part of a network's parameters that is trained, chosen by paths."""

from collections.abc import Sequence
from typing import Any

from flax import traverse_util

from ldm_jax.errors import ConfigError

SEPARATOR = "/"


def select(variables: Any, prefixes: Sequence[str]) -> Any:
  """The variables below paths that begin with one of the prefixes.

  Args:
    variables: by collection, as `Module.init` returns them.
    prefixes: of paths below the collection, such as "decoder" or
      "decoder/up_0"; () selects everything.
  """
  if not prefixes:
    return variables
  flat = traverse_util.flatten_dict(variables)
  return traverse_util.unflatten_dict(
    {path: leaf for path, leaf in flat.items() if _begins(path, prefixes)}
  )


def replace(variables: Any, selected: Any) -> Any:
  """The variables with the leaves of `selected` in place of their own."""
  flat = traverse_util.flatten_dict(selected)
  return traverse_util.unflatten_dict(
    traverse_util.flatten_dict(variables) | flat
  )


def check_prefixes(variables: Any, prefixes: Sequence[str]) -> None:
  """Raises ConfigError for a prefix without parameters, with what there is."""
  paths = list(traverse_util.flatten_dict(variables))
  for prefix in prefixes:
    if not any(_begins(path, (prefix,)) for path in paths):
      known = {SEPARATOR.join(path[1:3]) for path in paths}
      raise ConfigError(
        f"trains={prefix!r} selects no parameter; there are "
        f"{', '.join(sorted(known))} (--config.task.trains)"
      )


def _begins(path: Sequence[str], prefixes: Sequence[str]) -> bool:
  return SEPARATOR.join(path[1:]).startswith(tuple(prefixes))
