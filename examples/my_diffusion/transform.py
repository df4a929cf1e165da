"""A transform: the mean colour of every image, for a conditioner."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class MeanColor:
  """Mean red, green and blue in [-1, 1], with a little noise.

  Attributes:
    output_key: name of the new array.
    noise: standard deviation; a small one avoids memorizing exact colours.
  """

  output_key: str = "color"
  noise: float = 0.02

  def __call__(
    self, item: Mapping[str, Any], rng: np.random.Generator
  ) -> np.ndarray:
    """[3], float32."""
    color = np.mean(item["image"], axis=(0, 1)) / 127.5 - 1
    return np.float32(color + self.noise * rng.standard_normal(3))
