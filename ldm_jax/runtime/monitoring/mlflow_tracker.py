"""A tracker of MLflow."""

import dataclasses
import os
import time
from typing import Any, ClassVar

import numpy as np

from ldm_jax.runtime.monitoring.hosted_tracker import (
  PROJECT,
  HostedTracker,
  as_os_error,
  folder_name,
  read_ids,
  write_id,
)
from ldm_jax.runtime.monitoring.hyperparameters import hyperparameters
from ldm_jax.runtime.monitoring.trackers import Tracker

MLFLOW_BATCH = 100  # parameters that it takes in one request


@dataclasses.dataclass(frozen=True)
class MLflow(HostedTracker):
  """MLflow, at MLFLOW_TRACKING_URI or where its own default is.

  Attributes:
    experiment: MLFLOW_EXPERIMENT_NAME, else ldm_jax, if empty.
    name: of the run; the name of its folder if empty.
  """

  package: ClassVar[str] = "mlflow"

  experiment: str = ""
  name: str = ""

  def open(self, folder: str, step: int) -> Tracker:
    """Starts or continues the run."""
    with as_os_error():
      from mlflow import MlflowClient

      client = MlflowClient()
      run_id = read_ids(folder).get("mlflow")
      if run_id is None:
        experiment = (
          self.experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        )
        run_id = _new_run(client, experiment, self.name or folder_name(folder))
        write_id(folder, "mlflow", run_id)
      else:
        client.update_run(run_id, status="RUNNING")
      run = MLflowRun(client, run_id)
      run.log_settings(folder, step)
      return run


class MLflowRun(Tracker):
  """A run of MLflow."""

  def __init__(self, client: Any, run_id: str):
    self._client, self._id = client, run_id

  def log_settings(self, folder: str, step: int) -> None:
    """Logs parameters; changed ones, which MLflow keeps, as tags NAME/STEP."""
    from mlflow.entities import Param, RunTag

    known = self._client.get_run(self._id).data.params
    settings = {n: str(v) for n, v in hyperparameters(folder).items()}
    new = [Param(n, v) for n, v in settings.items() if n not in known]
    for begin in range(0, len(new), MLFLOW_BATCH):
      part = new[begin : begin + MLFLOW_BATCH]
      self._client.log_batch(self._id, params=part)
    changed = [n for n, v in settings.items() if known.get(n, v) != v]
    tags = [RunTag(f"{n}/{step}", settings[n]) for n in changed]
    for begin in range(0, len(tags), MLFLOW_BATCH):
      part = tags[begin : begin + MLFLOW_BATCH]
      self._client.log_batch(self._id, tags=part)

  def log(self, step: int, metrics: dict[str, float]) -> None:
    """All metrics in one request."""
    with as_os_error():
      from mlflow.entities import Metric

      now = int(time.time() * 1000)
      rows = [Metric(name, v, now, step) for name, v in metrics.items()]
      self._client.log_batch(self._id, metrics=rows)

  def image(self, step: int, name: str, array: np.ndarray) -> None:
    """One panel for each name, with a slider of steps."""
    with as_os_error():
      self._client.log_image(self._id, array, key=name, step=step)

  def close(self) -> None:
    """Marks the run as finished."""
    with as_os_error():
      self._client.set_terminated(self._id)


def _new_run(client: Any, experiment: str, name: str) -> str:
  """The id of a new run in an experiment that is created if need be."""
  found = client.get_experiment_by_name(experiment)
  place = (
    client.create_experiment(experiment)
    if found is None
    else found.experiment_id
  )
  return client.create_run(place, run_name=name).info.run_id
