"""Which checkpoints of a run stay."""

import dataclasses
import math
from typing import Any, Literal


@dataclasses.dataclass(frozen=True)
class CheckpointPolicy:
  """Which checkpoints are written, and which stay.

  Attributes:
    every: steps between checkpoints; the last step always has one.
    keep: how many of the latest stay.
    keep_every: steps between those that stay for good, or None.
    best: the validation metric whose best checkpoint stays too, or None.
    best_is: which end of the metric is the best.
  """

  every: int = 1000
  keep: int = 2
  keep_every: int | None = None
  best: str | None = None
  best_is: Literal["min", "max"] = "min"

  def __post_init__(self):
    if self.every < 1 or self.keep < 1:
      raise ValueError(
        "checkpoints need every >= 1 and keep >= 1, got "
        f"every={self.every} keep={self.keep}"
      )

  def score(self, metrics: dict[str, float]) -> float:
    """Of a checkpoint with these metrics; the worst if they lack it."""
    worst = math.inf if self.best_is == "min" else -math.inf
    return metrics.get(self.best, worst)

  def preservation_policy(self) -> Any:
    """Orbax's preservation policy; `max_to_keep` would drop the newest."""
    from orbax.checkpoint.checkpoint_managers import (
      preservation_policy as preserve,
    )

    policies = [preserve.LatestN(n=self.keep)]
    if self.keep_every is not None:
      policies.append(preserve.EveryNSteps(interval_steps=self.keep_every))
    if self.best is not None:
      policies.append(
        preserve.BestN(
          get_metric_fn=self.score,
          reverse=self.best_is == "min",
          n=1,
          keep_checkpoints_without_metrics=False,
        )
      )
    return preserve.AnyPreservationPolicy(policies)
