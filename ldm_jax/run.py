"""Run folders: their files, and how they are written and read.

  config.json    the experiment, the shapes of a batch, the first stage's digest
  checkpoints/   the state, by step
  frozen/        parameters that are not trained: LPIPS, or the first stage
  tokenizer/     if there are captions; t5_tokenizer/, if there is one
  data.json      what the data was: count, classes, a hash of its names
  changes.jsonl  what was changed when it was resumed
  metrics.jsonl, tensorboard/, previews/
  trackers.json  the run's ids in Weights & Biases, Trackio and MLflow
  skipped.jsonl  updates that were skipped; bad_samples.jsonl, bad images
  damaged/       checkpoints that were found damaged
  lock           held by the process that writes to the folder

A run is self-contained, so the folder may be moved.
"""

import dataclasses
import functools
import json
import os
from collections.abc import Collection
from typing import Any

import jax
import numpy as np

from ldm_jax import config, config_json, config_upgrade
from ldm_jax.config import Experiment
from ldm_jax.data.text.stored_tokenizers import load_tokenizers
from ldm_jax.data.text.tokenizers import Tokenizer
from ldm_jax.errors import ConfigError
from ldm_jax.fields.arguments import checked
from ldm_jax.files.atomic_writes import replace_file
from ldm_jax.files.strict_json import read_object
from ldm_jax.runtime.checkpointing import read_checkpoints, tree_io
from ldm_jax.runtime.devices.sharding import Sharding
from ldm_jax.runtime.program_cache import (
  Structure,
  initialization,
  shared_by_value,
)
from ldm_jax.runtime.stored_programs import stored_value

Shapes = dict[str, jax.ShapeDtypeStruct]

DATA = "data.json"  # in a run folder: the fingerprints of its data

# What may change when a run is resumed.
MAY_CHANGE = (
  "config.steps",
  "config.mesh",
  "config.reports",
  "config.trackers",
  "config.checkpoints",
  "config.first_stage:",
  "config.start:",
  "config.data.threads",
  "config.data.max_bad_fraction",
)


@dataclasses.dataclass(frozen=True)
class Run:
  """A run folder, opened.

  Attributes:
    batch: shapes and formats of a global batch.
  """

  folder: str
  experiment: Experiment
  batch: Shapes

  @classmethod
  @checked
  def open(cls, folder: str, trust: Collection[str] = ()) -> "Run":
    """Reads config.json.

    Args:
      trust: top-level packages that may be imported for classes which the
        experiment names as package.module:Class.

    Raises:
      ConfigError: there is none, it is not a run's, or it names a class that
        cannot be imported or is not trusted.
    """
    path = os.path.join(folder, "config.json")
    try:
      stored = read_object(path, ConfigError, has_constants=True)
    except FileNotFoundError:
      raise ConfigError(
        f"{folder!r} is no run folder: there is no {path}"
      ) from None
    try:
      tree, shapes = config_upgrade.upgraded(stored), stored["batch"]
      batch = {
        str(name): _shape(shape, dtype)
        for name, (shape, dtype) in shapes.items()
      }
    except ConfigError as error:
      raise ConfigError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
      raise ConfigError(
        f"{path} is not a run's: it needs an experiment and shapes of a batch"
      ) from error
    try:
      return cls(folder, config.from_json(tree, trust), batch)
    except ConfigError as error:
      raise ConfigError(f"{path}: {error}") from error

  @classmethod
  def exists(cls, folder: str) -> bool:
    """Whether `folder` holds a run; other programs have a config.json too."""
    path = os.path.join(folder, "config.json")
    try:
      return "experiment" in read_object(path, ConfigError, has_constants=True)
    except FileNotFoundError:
      return False
    except (OSError, ConfigError):
      return os.path.isdir(os.path.join(folder, "checkpoints"))

  def write(self) -> None:
    """Writes config.json, atomically."""
    os.makedirs(self.folder, exist_ok=True)
    path = os.path.join(self.folder, "config.json")
    stored = {
      "format": config_upgrade.VERSION,
      "experiment": config_json.to_json(self.experiment),
      "batch": {n: [s.shape, s.dtype.name] for n, s in self.batch.items()},
    }
    with replace_file(path, "utf-8") as file:
      json.dump(stored, file, indent=1)

  @property
  def has_step(self) -> bool:
    """Whether there is a checkpoint."""
    return read_checkpoints.latest_step(self._path("checkpoints")) is not None

  @functools.cached_property
  def step(self) -> int:
    """The step that `trained` has read; before that, the newest one.

    Raises:
      ConfigError: if there is none.
    """
    if not self.has_step:
      raise ConfigError(f"{self.folder} has no checkpoint yet")
    return read_checkpoints.latest_step(self._path("checkpoints"))

  @functools.cached_property
  def tokenizer(self) -> Tokenizer | None:
    """The tokenizer of its captions, or None."""
    data = self.experiment.data
    return load_tokenizers(self.folder, data.tokenizer, data.t5_tokenizer)

  def save_frozen(self, frozen: Any) -> None:
    """Writes the parameters that are not trained, once.

    Replaces what a start that was killed before `write` has left.
    """
    # Orbax refuses trees without nodes, which a task may have.
    tree_io.save_tree(self._path("frozen"), frozen or {"frozen": None})

  def frozen(self, sharding: Sharding) -> Any:
    """The parameters that are not trained, on the devices.

    Raises:
      DamagedFile: their checksums differ from what was written.
    """
    shapes = frozen_shapes(self.experiment.task, Structure.of(self.batch))
    if not shapes:
      return shapes
    return tree_io.load_tree(self._path("frozen"), _placed(shapes, sharding))

  def trained(self, sharding: Sharding) -> Any:
    """The parameters to use: the average, where the task keeps one.

    Of an autoencoder its variables; of a denoiser a dictionary of U-Net and
    conditioners; see `trained_part`.
    """
    part = self.trained_part(sharding)
    if "ema" in part:
      return part["ema"]
    params, is_first = part["params"], is_autoencoder(self.experiment.task)
    return params["autoencoder"] if is_first else params

  def state_shapes(self) -> Any:
    """Shapes of the training state."""
    task, batch = self.experiment.task, Structure.of(self.batch)
    frozen = Structure.of(frozen_shapes(task, batch))
    return initialization(task, batch, frozen).shapes

  def trained_part(self, sharding: Sharding) -> dict[str, Any]:
    """The part of the state that holds `trained`: "ema" or "params".

    It is that of the newest step in which it is intact.

    Raises:
      ConfigError: there is no checkpoint.
      DamagedFile: it is intact in no step.
    """
    state = self.state_shapes()
    part = {"params": state.params}
    if getattr(state, "ema", None) is not None:
      part = {"ema": state.ema}
    elif is_autoencoder(self.experiment.task):
      part = {"params": {"autoencoder": state.params["autoencoder"]}}
    if not self.has_step:
      raise ConfigError(f"{self.folder} has no checkpoint yet")
    step, restored = read_checkpoints.restore_newest_subtree(
      self._path("checkpoints"), _placed(part, sharding)
    )
    vars(self)["step"] = step  # of what is used from here on
    return restored

  def _path(self, name: str) -> str:
    return os.path.join(self.folder, name)


def recorded_data(folder: str) -> dict[str, Any]:
  """The fingerprint of a run's training data, {} if none is recorded.

  See `data.fingerprint`: "count", "classes" and "names".

  Raises:
    ConfigError: data.json is damaged.
  """
  path = os.path.join(folder, DATA)
  try:
    stored = read_object(path, ConfigError)
  except FileNotFoundError:
    return {}
  match stored:
    case {"training data": {"count": int(), "classes": list(names)} as found}:
      if all(isinstance(name, str) for name in names):
        return found
  raise ConfigError(f"{path} is damaged; expected count and classes")


def class_names(folder: str) -> tuple[str, ...]:
  """The names of a run's labels, in their order; () if they have none."""
  return tuple(recorded_data(folder).get("classes", ()))


def is_autoencoder(task: Any) -> bool:
  """Whether a task trains an `autoencoder`, so that a run is a first stage."""
  return hasattr(task, "autoencoder")


def open_first_stage(folder: str, trust: Collection[str] = ()) -> Run:
  """The run of an autoencoder.

  Args:
    trust: see `Run.open`.

  Raises:
    ConfigError: if it is not one.
  """
  run = Run.open(folder, trust)
  if not is_autoencoder(run.experiment.task):
    raise ConfigError(
      f"first_stage {folder!r} is a run of "
      f"{type(run.experiment.task).__name__}; it must be one of AutoencoderTask"
    )
  return run


def _shape(shape: Any, dtype: Any) -> jax.ShapeDtypeStruct:
  """Of JSON. Raises ValueError or TypeError for what is no shape or dtype."""
  sizes = tuple(map(int, shape))
  if any(not 0 <= size < 2**48 for size in sizes) or not isinstance(dtype, str):
    raise ValueError(f"{shape!r} of {dtype!r}")
  return jax.ShapeDtypeStruct(sizes, dtype)


def shapes_of(batch: dict[str, np.ndarray], rows: int) -> Shapes:
  """Shapes of a global batch of `rows`, from this process's rows."""
  return {
    name: jax.ShapeDtypeStruct((rows, *array.shape[1:]), array.dtype)
    for name, array in batch.items()
  }


@shared_by_value
def frozen_shapes(task: Any, batch: Structure) -> Any:
  """Shapes of a task's frozen parameters, which take a trace of a network."""
  trace = lambda: task.frozen_shapes(batch.shapes)
  return stored_value(("frozen shapes", task, batch), trace)


def _placed(shapes: Any, sharding: Sharding) -> Any:
  place = lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at)
  return jax.tree.map(place, shapes, sharding.tree_shardings(shapes))
