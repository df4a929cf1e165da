"""The protocol of a backbone, the network of the second stage."""

from typing import Any, Protocol, runtime_checkable

from jaxtyping import Array, Float

from ldm_jax.nn.conditioners.embedders import Condition


@runtime_checkable
class Backbone(Protocol):
  """A Linen module (x_t, t, condition) -> output, which is float32.

  Any module with these members can be `LatentDiffusion.unet`; the output is in
  the parameterization `LatentDiffusion.prediction`. A "dropout" rng is given in
  training alone. A network that is not of this package cannot be saved as
  diffusers' files, and a ControlNet is of a U-Net alone. A network that reads
  `Condition.guidance` has the attribute `embeds_guidance`, which is true; one
  that takes latents up to a size has their `largest_side`, and one that applies
  equal blocks by `apply_blocks` their names as `scanned_blocks`.

  Attributes:
    size_multiple: the latents' height and width must be multiples of it; 1 if
      every size is valid.
  """

  @property
  def size_multiple(self) -> int: ...

  def __call__(
    self,
    xt: Float[Array, "b h w c"],
    t: Float[Array, " b"],
    condition: Condition,
  ) -> Float[Array, "b h w d"]:
    """The output, of x_t's channels unless the backbone defines others.

    Args:
      t: time in [0, T), whole in training, any number in sampling.
      condition: the merged outputs of all conditioners; a backbone may ignore
        what it does not use.
    """
    ...

  def init(self, key: Array, *args: Any, **options: Any) -> Any:
    """As in every Linen module."""
    ...

  def apply(self, variables: Any, *args: Any, **options: Any) -> Any:
    """As in every Linen module."""
    ...


def check_process(backbone: Backbone, schedule: Any, prediction: str) -> None:
  """Raises ValueError for a flow transformer on another process than its own.

  A network with `flow_steps` computes its input and its time from those of the
  schedule rectified_flow of that many steps, and predicts its velocity.

  Args:
    schedule: of `LatentDiffusion`, with `kind` and `steps`.
  """
  steps = getattr(backbone, "flow_steps", None)
  own = schedule.kind, schedule.steps, prediction
  if steps is not None and own != ("rectified_flow", steps, "flow"):
    raise ValueError(
      f"a {type(backbone).__name__} of flow_steps={steps} needs the schedule "
      f"rectified_flow of {steps} steps and the prediction flow, got "
      f"{schedule.kind} of {schedule.steps} and {prediction}"
    )
