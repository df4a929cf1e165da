"""A tracker: metrics to the console."""

import dataclasses

from ldm_jax.runtime.monitoring.trackers import Tracker


@dataclasses.dataclass(frozen=True)
class ConsoleTracker(Tracker):
  """Prints every report."""

  def log(self, step: int, metrics: dict[str, float]) -> None:
    """One line."""
    print(f"step {step}: loss {metrics.get('loss', float('nan')):.4f}")
