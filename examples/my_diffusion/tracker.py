"""A tracker: metrics to the console."""

import dataclasses
import sys

from ldm_jax.runtime.monitoring.trackers import Tracker


@dataclasses.dataclass(frozen=True)
class ConsoleTracker(Tracker):
  """Prints every report to stderr."""

  def log(self, step: int, metrics: dict[str, float]) -> None:
    """One line: the step, and every metric by name."""
    values = " ".join(f"{name}={value:.4g}" for name, value in metrics.items())
    print(f"[console] step {step}: {values}", file=sys.stderr)
