"""The conditioner over an image that an instruction edits."""

import flax.linen as nn
from jaxtyping import Array, Bool, Float

from ldm_jax.fields.limits import Fraction
from ldm_jax.nn.conditioners.embedders import Condition, zero_where


class SourceImage(nn.Module):
  """The latents of an image to edit, after x_t; no parameters.

  InstructPix2Pix (Brooks et al. 2023, section 3.2): the mode of the first
  stage's posterior, without the scale of the latents that are diffused.
  FLUX.1-Depth and -Canny read a depth map or edges with their scale.

  Attributes:
    is_scaled: its latents are normalised and scaled as those diffused.
    input_key: of the batch's image, uint8, of the size of the edited one.
    drop_rate: fraction of training examples with zeros.
    joint_drop_rate: fraction of training examples in which every condition
      that has an unconditional value takes it. InstructPix2Pix drops the image
      alone, the text alone, and both, each in 5 % of its examples.
  """

  input_key: str = "source"
  drop_rate: Fraction = 0.05
  joint_drop_rate: Fraction = 0.05
  is_scaled: bool = False

  is_frozen = False

  @property
  def has_unconditional(self) -> bool:
    """Whether training sometimes drops it; if not, guidance keeps it."""
    return self.drop_rate > 0 or self.joint_drop_rate > 0

  def __call__(
    self, latents: Float[Array, "b h w c"], drop: Bool[Array, " b"]
  ) -> Condition:
    return Condition(concat=zero_where(latents, drop))
