"""Trackers of Weights & Biases and of Trackio, which has its interface."""

import dataclasses
import os
from typing import Any, ClassVar

import numpy as np

from ldm_jax.runtime.monitoring.hosted_tracker import (
  PROJECT,
  HostedTracker,
  as_os_error,
  folder_name,
  run_id,
)
from ldm_jax.runtime.monitoring.hyperparameters import hyperparameters
from ldm_jax.runtime.monitoring.trackers import Tracker


@dataclasses.dataclass(frozen=True)
class Wandb(HostedTracker):
  """Weights & Biases; WANDB_MODE=offline writes to the run folder alone.

  Attributes:
    project: WANDB_PROJECT, else ldm_jax, if empty.
    entity: a user or a team; the account's default if empty.
    name: of the run; the name of its folder if empty.
  """

  package: ClassVar[str] = "wandb"

  project: str = ""
  entity: str = ""
  name: str = ""

  def open(self, folder: str, step: int) -> Tracker:
    """Starts or continues the run."""
    with as_os_error():
      import wandb

      run = wandb.init(
        project=self.project or os.environ.get("WANDB_PROJECT") or PROJECT,
        entity=self.entity or None,
        name=self.name or folder_name(folder),
        id=run_id(folder, "wandb"),
        resume="allow",
        dir=folder,
        config=hyperparameters(folder),
        allow_val_change=True,
        settings={"console": "off"},
      )
      # Its own steps must grow, and a resumed run goes back to a checkpoint.
      run.define_metric("*", step_metric="step")
      return WandbRun(run, wandb.Image)


class WandbRun(Tracker):
  """A run of Weights & Biases."""

  def __init__(self, run: Any, make_image: Any):
    self._run, self._make_image = run, make_image

  def log(self, step: int, metrics: dict[str, float]) -> None:
    """One row, with the step as a value."""
    with as_os_error():
      self._run.log({"step": step, **metrics})

  def image(self, step: int, name: str, array: np.ndarray) -> None:
    """One panel for each name."""
    with as_os_error():
      self._run.log({"step": step, name: self._make_image(array)})

  def close(self) -> None:
    """Waits for what is being sent."""
    with as_os_error():
      self._run.finish()


@dataclasses.dataclass(frozen=True)
class Trackio(HostedTracker):
  """Trackio: files in TRACKIO_DIR, or a Space named by TRACKIO_SPACE_ID.

  Attributes:
    project: ldm_jax if empty.
    name: of the run; the name of its folder if empty. A part of the id follows.
  """

  package: ClassVar[str] = "trackio"

  project: str = ""
  name: str = ""

  def open(self, folder: str, step: int) -> Tracker:
    """Starts or continues the run, which its name identifies."""
    with as_os_error():
      import trackio

      name = self.name or folder_name(folder)
      run = trackio.init(
        project=self.project or PROJECT,
        name=f"{name}-{run_id(folder, 'trackio')}",
        resume="allow",
        config=hyperparameters(folder),
        embed=False,
      )
      return TrackioRun(run, trackio)


class TrackioRun(Tracker):
  """A run of Trackio."""

  def __init__(self, run: Any, package: Any):
    self._run, self._package = run, package

  def log(self, step: int, metrics: dict[str, float]) -> None:
    """One row."""
    with as_os_error():
      self._run.log(metrics, step=step)

  def image(self, step: int, name: str, array: np.ndarray) -> None:
    """One panel for each name."""
    with as_os_error():
      self._run.log({name: self._package.Image(array)}, step=step)

  def close(self) -> None:
    """Waits for what is being sent."""
    with as_os_error():
      self._package.finish()  # the run's own would be called again at exit
