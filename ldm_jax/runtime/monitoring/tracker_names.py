"""Trackers by name, and a check that their packages are installed."""

from collections.abc import Sequence

from ldm_jax.errors import ConfigError
from ldm_jax.runtime.monitoring.hosted_tracker import HostedTracker
from ldm_jax.runtime.monitoring.mlflow_tracker import MLflow
from ldm_jax.runtime.monitoring.trackers import TensorBoard, Tracker
from ldm_jax.runtime.monitoring.wandb_tracker import Trackio, Wandb

BY_NAME = {
  "tensorboard": TensorBoard,
  "wandb": Wandb,
  "trackio": Trackio,
  "mlflow": MLflow,
}


def tracker_of(name: str) -> Tracker:
  """A tracker with its defaults, by the name of its package.

  Raises:
    ConfigError: there is none of that name.
  """
  if name not in BY_NAME:
    raise ConfigError(
      f"tracker {name!r} is none of {', '.join(BY_NAME)}; a user-defined one "
      "is set in the config's trackers"
    )
  return BY_NAME[name]()


def check_trackers(trackers: Sequence[Tracker]) -> None:
  """Raises ConfigError if the package of one is not installed."""
  for tracker in trackers:
    if isinstance(tracker, HostedTracker):
      tracker.check()
