"""A guidance: stronger at high noise levels, none at the image."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array


class FadingGuidance(NamedTuple):
  """Classifier-free guidance whose scale decreases from `scale` to 1 with t.

  Attributes:
    scale: at pure noise; it may be a traced number.
    power: 1 is linear in t / T; larger values decrease sooner.
  """

  scale: Any = 5.0
  power: Any = 1.0

  def check(self) -> None:
    """Raises ValueError for invalid numbers."""
    if not self.power > 0:
      raise ValueError(f"power must be above 0, got {self.power}")

  def needs_unconditional(self) -> bool:
    """Whether the unconditional prediction is needed at all."""
    return self.scale != 1.0

  def combine(
    self, unconditional: Array, conditional: Array, fraction: Any
  ) -> Array:
    """The guided prediction; `fraction` is t / T."""
    scale = 1 + (self.scale - 1) * jnp.power(fraction, self.power)
    return unconditional + scale * (conditional - unconditional)
