"""A conditioner: a colour, added to the time embedding."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ldm_jax.nn.conditioners.embedders import Condition


class ColorEmbedder(nn.Module):
  """A colour [b 3] through a small network; unconditional is a learned vector.

  Attributes:
    width: of the vector.
    input_key: the array of the batch that it reads.
    drop_rate: fraction of training examples without a colour.
  """

  width: int = 32
  input_key: str = "color"
  drop_rate: float = 0.1

  has_unconditional = True  # guidance may extrapolate away from it
  is_frozen = False  # trained with the backbone

  @nn.compact
  def __call__(
    self, color: Float[Array, "b 3"], drop: Bool[Array, " b"]
  ) -> Condition:
    """Where `drop` is true: the unconditional vector."""
    null = self.param("null", nn.initializers.normal(1.0), (self.width,))
    hidden = nn.gelu(nn.Dense(self.width, name="hidden")(color))
    vector = nn.Dense(self.width, name="out")(hidden)
    return Condition(vector=jnp.where(drop[:, None], null, vector))
