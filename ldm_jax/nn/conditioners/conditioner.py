"""The protocol of a conditioner: an array of the batch to a condition."""

from typing import Any, Protocol, runtime_checkable

from jaxtyping import Array, Bool

from ldm_jax.nn.conditioners.embedders import Condition
from ldm_jax.nn.conditioners.source_image import SourceImage
from ldm_jax.nn.conditioners.spatial import LowResolution, MaskedImage


@runtime_checkable
class Conditioner(Protocol):
  """A Linen module that turns one array of the batch into a `Condition`.

  Any module with these members can stand in `LatentDiffusion.conditioners`.

  Attributes:
    input_key: name of the array of the batch that it reads.
    drop_rate: fraction of training examples whose input is replaced by the
      unconditional one.
    has_unconditional: whether the negative side of classifier-free guidance
      takes the unconditional output; if not, both sides take the same one.
    is_frozen: whether its parameters stay as they are while the U-Net learns.
  """

  input_key: str
  drop_rate: float
  has_unconditional: bool
  is_frozen: bool

  def __call__(self, inputs: Any, drop: Bool[Array, " b"]) -> Condition:
    """The part of the condition.

    Args:
      inputs: [b ...], what `input_key` names, or a tree of such arrays.
      drop: where the output is the unconditional one.
    """
    ...


# Their inputs are made of images, not read from the batch as they are; see
# concat_conditioning.py.
ConcatConditioner = MaskedImage | LowResolution | SourceImage
