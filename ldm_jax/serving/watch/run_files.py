"""The files of a run, read while it trains or later; nothing is written."""

import dataclasses
import functools
import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ldm_jax.errors import ConfigError, DamagedFile
from ldm_jax.files.strict_json import read_object
from ldm_jax.runtime.checkpointing.checksums import combined_checksum
from ldm_jax.runtime.monitoring.metric_writer import (
  VALIDATION,
  read_json_lines,
  read_metrics,
)

POINTS = 2000  # of a curve; more are averaged


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """One step of a run's checkpoints.

  Attributes:
    size: in bytes.
    written: seconds since 1970.
    digest: SHA-256 over the digests of all arrays, as `ldm-jax verify` prints
      it; None while the checkpoint is being written.
  """

  step: int
  size: int
  written: float
  digest: str | None


@dataclasses.dataclass(frozen=True)
class RunFiles:
  """What the folder of a run holds at one moment.

  Attributes:
    config: of the experiment, by dotted path.
    metrics: lines of metrics.jsonl.
    previews: paths by name and step.
    checkpoints: oldest first.
    skipped: lines of skipped.jsonl: "step", "reason", "examples".
    changes: lines of changes.jsonl, of what was changed on resuming.
  """

  folder: str
  config: Mapping[str, Any]
  metrics: Sequence[Mapping[str, Any]]
  previews: Mapping[str, Mapping[int, str]]
  checkpoints: Sequence[Checkpoint]
  skipped: Sequence[Mapping[str, Any]]
  changes: Sequence[Mapping[str, Any]]

  @property
  def name(self) -> str:
    """The folder's own name."""
    return os.path.basename(os.path.normpath(self.folder))

  @property
  def step(self) -> int:
    """The last step that was reported."""
    return max((line["step"] for line in self.metrics), default=0)

  @property
  def steps(self) -> int | None:
    """The step at which training ends."""
    steps = self.config.get("steps")
    return steps if isinstance(steps, int) else None

  @property
  def seconds_left(self) -> float | None:
    """Until the last step at the mean speed so far, or None."""
    if not self.metrics or not self.steps or not self.step:
      return None
    spent = max(line["seconds"] for line in self.metrics)
    return spent / self.step * max(0, self.steps - self.step)

  @property
  def names(self) -> list[str]:
    """Of all metrics, in the order in which they first appear."""
    found = dict.fromkeys(name for line in self.metrics for name in line)
    return [name for name in found if name not in ("step", "seconds")]

  def curve(self, name: str) -> tuple[list[int], list[float]]:
    """Steps and values of a metric; NaN where it was not finite."""
    lines = [line for line in self.metrics if name in line]
    values = (line[name] for line in lines)
    numbers = [math.nan if value is None else float(value) for value in values]
    return [line["step"] for line in lines], numbers

  def latest(self, name: str) -> float | None:
    """The last value of a metric, or None."""
    _, values = self.curve(name)
    return values[-1] if values else None

  @property
  def validation_loss(self) -> str | None:
    """The metric of held-out examples that is nearest to the loss."""
    names = [name for name in self.names if name.startswith(VALIDATION)]
    return (
      f"{VALIDATION}loss"
      if f"{VALIDATION}loss" in names
      else (names[0] if names else None)
    )


def read_run(folder: str) -> RunFiles:
  """Reads the files of a run.

  Raises:
    ConfigError: the folder holds no run.
  """
  path = os.path.join(folder, "config.json")
  try:
    stored = read_object(path, ConfigError, has_constants=True)
  except (FileNotFoundError, NotADirectoryError):
    raise ConfigError(
      f"{folder!r} is no run folder: there is no {path}"
    ) from None
  if not isinstance(stored.get("experiment"), dict):
    raise ConfigError(f"{path} is not a run's: it has no experiment")
  lines = lambda name, *keys: read_json_lines(os.path.join(folder, name), keys)
  return RunFiles(
    folder,
    flattened(stored["experiment"]),
    read_metrics(folder),
    read_previews(folder),
    read_checkpoints(folder),
    lines("skipped.jsonl", "step"),
    lines("changes.jsonl"),
  )


def read_previews(folder: str) -> dict[str, dict[int, str]]:
  """previews/NAME_STEP.png: paths by name and step, the latter in order."""
  previews = os.path.join(folder, "previews")
  found: dict[str, dict[int, str]] = {}
  for file in sorted(os.listdir(previews) if os.path.isdir(previews) else ()):
    if match := re.fullmatch(r"(\w+)_([0-9]+)\.png", file):
      steps = found.setdefault(match[1], {})
      steps[int(match[2])] = os.path.join(previews, file)
  return {name: dict(sorted(steps.items())) for name, steps in found.items()}


def read_checkpoints(folder: str) -> list[Checkpoint]:
  """The checkpoints of a run, oldest first, from their digests alone."""
  parent = os.path.join(folder, "checkpoints")
  names = os.listdir(parent) if os.path.isdir(parent) else ()
  steps = sorted(int(name) for name in names if name.isdecimal())
  found = []
  for step in steps:
    path = os.path.join(parent, str(step))
    try:
      written = os.stat(path).st_mtime
      digest, size = _digest(path, written)
    except OSError:
      continue  # deleted since: a policy keeps a few
    found.append(Checkpoint(step, size, written, digest))
  return found


@functools.lru_cache(4096)
def _digest(path: str, written: float) -> tuple[str | None, int]:
  """Digest and size of a checkpoint that was written at a time."""
  parts = [
    os.path.join(parent, file)
    for parent, _, files in os.walk(path)
    for file in files
  ]
  size = sum(os.path.getsize(part) for part in parts)
  try:
    file = os.path.join(path, "digests", "metadata")
    leaves = read_object(file, DamagedFile)
    return combined_checksum({k: str(v) for k, v in leaves.items()}), size
  except (FileNotFoundError, DamagedFile):
    return None, size


def flattened(tree: Any, path: str = "") -> dict[str, Any]:
  """The leaves of a JSON tree by dotted path; lists of numbers are leaves."""
  if isinstance(tree, dict):
    items = tree.items()
  elif isinstance(tree, list) and any(isinstance(x, dict | list) for x in tree):
    items = enumerate(tree)
  else:
    return {path: tree}
  leaves: dict[str, Any] = {}
  for name, value in items:
    leaves |= flattened(value, f"{path}.{name}" if path else str(name))
  return leaves


def config_differences(
  runs: Sequence[RunFiles],
) -> list[tuple[str, tuple[Any, ...]]]:
  """(path, value of every run) where they differ; None where one has none."""
  paths = dict.fromkeys(path for run in runs for path in run.config)
  rows = ((p, tuple(run.config.get(p) for run in runs)) for p in paths)
  return [
    (path, values)
    for path, values in rows
    if any(value != values[0] for value in values)
  ]


def thinned(
  steps: Sequence[int], values: Sequence[float], most: int = POINTS
) -> tuple[list[int], list[float]]:
  """A curve of at most `most` points: means of as many neighbours each."""
  size = -(-len(steps) // most)
  if size <= 1:
    return list(steps), list(values)
  parts = [values[i : i + size] for i in range(0, len(values), size)]
  ends = [
    steps[min(i + size, len(steps)) - 1] for i in range(0, len(steps), size)
  ]
  return ends, [sum(part) / len(part) for part in parts]


def state_of_files(folders: Sequence[str]) -> tuple:
  """Changes whenever a file that is shown does."""
  names = ("metrics.jsonl", "skipped.jsonl", "changes.jsonl")
  names += ("previews", "checkpoints", "config.json")
  found = []
  for folder in folders:
    for name in names:
      try:
        status = os.stat(os.path.join(folder, name))
        found.append((status.st_mtime_ns, status.st_size))
      except OSError:
        found.append(None)
  return tuple(found)
