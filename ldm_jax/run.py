"""A run folder: how it is laid out, begun, and opened again.

  config.json    the experiment, the shapes of a batch, the first stage's digest
  checkpoints/   the state, by step
  frozen/        what is not trained: LPIPS, or the first stage and the scale
  tokenizer/     if there are captions
  metrics.jsonl, tensorboard/, previews/
  skipped.jsonl  updates that were passed over; bad_samples.jsonl, bad pictures
  damaged/       checkpoints that were not what had been written
  lock           who writes here

It needs nothing outside itself, so it may be moved.
"""

import dataclasses
import functools
import json
import os
from typing import Any

import jax
import numpy as np

from ldm_jax import config, config_tree
from ldm_jax.config import Experiment
from ldm_jax.data.text import tokenizers
from ldm_jax.data.text.tokenizers import Tokenizer
from ldm_jax.errors import ConfigError
from ldm_jax.runtime.checkpointing import checkpoint, tree_io
from ldm_jax.runtime.devices.sharding import Sharding
from ldm_jax.training.autoencoder import AutoencoderTask

Shapes = dict[str, jax.ShapeDtypeStruct]

# What may change when a run goes on: where, how long, and what it tells.
MAY_CHANGE = (
  "config.steps",
  "config.mesh",
  "config.reports",
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
  def open(cls, folder: str) -> "Run":
    """Reads config.json.

    Raises:
      ConfigError: if there is none, or it is not ours.
    """
    path = os.path.join(folder, "config.json")
    try:
      with open(path) as file:
        stored = json.load(file)
    except FileNotFoundError:
      raise ConfigError(
        f"{folder!r} is no run folder: there is no {path}"
      ) from None
    except (ValueError, RecursionError) as error:
      raise ConfigError(f"{path} is damaged: {error}") from None
    try:
      told, shapes = stored["experiment"], stored["batch"]
      batch = {
        str(name): jax.ShapeDtypeStruct(tuple(map(int, shape)), dtype)
        for name, (shape, dtype) in shapes.items()
      }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
      raise ConfigError(
        f"{path} is no run's: it needs an experiment and the shapes of a batch"
      ) from error
    return cls(folder, config.from_json(told), batch)

  @classmethod
  def exists(cls, folder: str) -> bool:
    """Whether `folder` holds a run; other programs have a config.json too."""
    try:
      with open(os.path.join(folder, "config.json")) as file:
        return "experiment" in json.load(file)
    except FileNotFoundError:
      return False
    except (OSError, ValueError):
      return os.path.isdir(os.path.join(folder, "checkpoints"))

  def write(self) -> None:
    """Writes config.json; never half of it."""
    os.makedirs(self.folder, exist_ok=True)
    path = os.path.join(self.folder, "config.json")
    stored = {
      "experiment": config_tree.to_json(self.experiment),
      "batch": {n: [s.shape, s.dtype.name] for n, s in self.batch.items()},
    }
    with open(path + ".part", "w") as file:
      json.dump(stored, file, indent=1)
    os.replace(path + ".part", path)

  def check_same(self, experiment: Experiment) -> None:
    """Raises ConfigError if `experiment` would not go on with this run."""
    told = config_tree.differences(experiment, self.experiment)
    told = [line for line in told if not line.startswith(MAY_CHANGE)]
    if told:
      raise ConfigError(
        f"{self.folder} holds another experiment: {told[0]}; choose another "
        "--workdir, or the config it was begun with"
      )

  @property
  def has_step(self) -> bool:
    """Whether there is a checkpoint."""
    return checkpoint.latest_step(self._path("checkpoints")) is not None

  @functools.cached_property
  def step(self) -> int:
    """The newest checkpoint's.

    Raises:
      ConfigError: if there is none.
    """
    step = checkpoint.latest_step(self._path("checkpoints"))
    if step is None:
      raise ConfigError(f"{self.folder} has no checkpoint yet")
    return step

  @functools.cached_property
  def tokenizer(self) -> Tokenizer | None:
    """The tokenizer its captions went through."""
    spec = self.experiment.data.tokenizer
    if spec is None:
      return None
    return tokenizers.load(self._path("tokenizer"), spec.length)

  def save_tokenizer(self, words: Tokenizer) -> None:
    """Keeps the tokenizer with the run."""
    words.save(self._path("tokenizer"))

  def save_frozen(self, frozen: Any) -> None:
    """Writes what is not trained, once.

    What a start that was killed before `write` has left is taken away.
    """
    tree_io.save_tree(self._path("frozen"), frozen)

  def frozen(self, sharding: Sharding) -> Any:
    """What is not trained, on the devices.

    Raises:
      Damaged: it is not what was written.
    """
    shapes = self.experiment.task.frozen_shapes(self.batch)
    return tree_io.load_tree(self._path("frozen"), _placed(shapes, sharding))

  def trained(self, sharding: Sharding) -> Any:
    """The parameters to use, averaged where the run averages.

    Stage one gives the autoencoder's variables; stage two a dictionary of
    U-Net and conditioners. They are those of the newest step where they are
    whole.

    Raises:
      ConfigError: there is no step.
      Damaged: they are whole in none.
    """
    task = self.experiment.task
    frozen = task.frozen_shapes(self.batch)
    state = jax.eval_shape(task.init, jax.random.key(0), self.batch, frozen)
    if state.ema is not None:
      part = {"ema": state.ema}
    else:
      part = {"params": {"autoencoder": state.params["autoencoder"]}}
    if not self.has_step:
      raise ConfigError(f"{self.folder} has no checkpoint yet")
    _, restored = checkpoint.restore_newest_subtree(
      self._path("checkpoints"), _placed(part, sharding)
    )
    return restored.get("ema") or restored["params"]["autoencoder"]

  def _path(self, name: str) -> str:
    return os.path.join(self.folder, name)


def open_first_stage(folder: str) -> Run:
  """The run of an autoencoder.

  Raises:
    ConfigError: if it is not one.
  """
  run = Run.open(folder)
  if not isinstance(run.experiment.task, AutoencoderTask):
    raise ConfigError(
      f"first_stage {folder!r} is a run of "
      f"{type(run.experiment.task).__name__}; it must be one of AutoencoderTask"
    )
  return run


def shapes_of(batch: dict[str, np.ndarray], rows: int) -> Shapes:
  """Shapes of a global batch of `rows`, from this process's part."""
  return {
    name: jax.ShapeDtypeStruct((rows, *array.shape[1:]), array.dtype)
    for name, array in batch.items()
  }


def _placed(shapes: Any, sharding: Sharding) -> Any:
  return jax.tree.map(
    lambda leaf, place: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=place
    ),
    shapes,
    sharding.tree_shardings(shapes),
  )
