"""What trackers of other packages have in common: ids, errors, checks.

Their packages are optional: pip install "ldm_jax[wandb]", [trackio] or
[mlflow]. A resumed run is continued under its id, which trackers.json of the
run folder keeps. What a resumed run repeats of earlier steps is logged again,
at the same steps.
"""

import contextlib
import importlib.util
import json
import os
import secrets
import sys
from collections.abc import Iterator
from typing import ClassVar

from ldm_jax.errors import ConfigError
from ldm_jax.files.atomic_writes import replace_file
from ldm_jax.files.strict_json import read_object
from ldm_jax.runtime.monitoring.trackers import Tracker

IDS = "trackers.json"  # in a run folder: the id of the run in each tracker
PROJECT = "ldm_jax"  # the default


class HostedTracker(Tracker):
  """A tracker whose package is optional.

  Attributes:
    package: its name, and that of the extra that installs it.
  """

  package: ClassVar[str]

  def check(self) -> None:
    """Raises ConfigError if the package is missing."""
    if importlib.util.find_spec(self.package) is None:
      raise ConfigError(
        f"the tracker {self.package} needs its package: "
        f'pip install "ldm_jax[{self.package}]"'
      )


@contextlib.contextmanager
def as_os_error() -> Iterator[None]:
  """Errors of a tracker's package, of whatever kind, as OSError of one line.

  What it prints goes to stderr, since a command's stdout is for its result.
  """
  try:
    with contextlib.redirect_stdout(sys.stderr):
      yield
  except Exception as error:
    line = " ".join(str(error).split())[:200]
    raise OSError(f"{type(error).__name__}: {line}") from error


def folder_name(folder: str) -> str:
  """The last part of a folder's path."""
  return os.path.basename(os.path.abspath(folder))


def run_id(folder: str, package: str) -> str:
  """The run's id, chosen at random at its first use."""
  found = read_ids(folder).get(package)
  return found or write_id(folder, package, secrets.token_hex(4))


def write_id(folder: str, package: str, run_id: str) -> str:
  """Keeps the run's id for a package; returns it."""
  ids = read_ids(folder) | {package: run_id}
  with replace_file(os.path.join(folder, IDS), "utf-8") as file:
    json.dump(ids, file)
  return run_id


def read_ids(folder: str) -> dict[str, str]:
  """{package: id}; raises ConfigError for a damaged file."""
  try:
    ids = read_object(os.path.join(folder, IDS), ConfigError)
  except FileNotFoundError:
    return {}
  return {n: v for n, v in ids.items() if isinstance(v, str) and v.isalnum()}
