"""When checkpoints are written, and which are kept."""

import dataclasses
import math
from typing import Any, Literal

from ldm_jax.fields.limits import Count, check_limits


@dataclasses.dataclass(frozen=True)
class CheckpointPolicy:
  """When checkpoints are written, and which are kept.

  Attributes:
    every: steps between checkpoints; the last step is always saved.
    keep: how many of the latest are kept.
    keep_every: checkpoints at multiples of it are never deleted; None disables
      this.
    best: the validation metric whose best checkpoint is kept too, or None.
    best_is: whether the lowest or the highest value is the best.
  """

  every: Count = 1000
  keep: Count = 2
  keep_every: Count | None = None
  best: str | None = None
  best_is: Literal["min", "max"] = "min"

  def __post_init__(self):
    check_limits(self)

  def score(self, metrics: dict[str, float]) -> float:
    """The value of metric `best`; the worst possible if it is no number.

    NaN compares as neither better nor worse, so that it could stay the best.
    """
    value = metrics.get(self.best)
    if isinstance(value, int | float) and math.isfinite(value):
      return value
    return math.inf if self.best_is == "min" else -math.inf

  def preservation_policy(self) -> Any:
    """Orbax's preservation policy.

    Its `max_to_keep` together with a best metric would drop the newest.
    """
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
