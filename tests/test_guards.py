"""Values that are not finite, and which checkpoint is the best."""

import math

import numpy as np
import pytest

from ldm_jax.errors import NonFinite
from ldm_jax.runtime.checkpointing.policy import CheckpointPolicy
from ldm_jax.sampling.generation import check_finite


@pytest.mark.parametrize(
  "best_is, worst", [("min", math.inf), ("max", -math.inf)]
)
def test_a_metric_that_is_no_number_is_the_worst(best_is, worst):
  policy = CheckpointPolicy(best="psnr", best_is=best_is)
  for metrics in (
    {},
    {"psnr": math.nan},
    {"psnr": -math.inf if best_is == "min" else math.inf},
  ):
    assert policy.score(metrics) == worst
  assert policy.score({"psnr": 3.5}) == 3.5


def test_latents_that_are_not_finite_are_refused():
  latents = np.zeros((3, 2, 2, 4), np.float32)
  check_finite(latents)
  check_finite(np.zeros((1, 2, 2, 3), np.uint8))
  latents[1, 0, 0, 0] = np.nan
  with pytest.raises(NonFinite, match="1 of 3 latents hold NaN or infinity"):
    check_finite(latents)
