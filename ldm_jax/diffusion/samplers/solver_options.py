"""What a scheduler's config may choose besides a sampler's name and order."""

import dataclasses
import math
from typing import Any, Literal, get_args

VarianceType = Literal["fixed_small", "fixed_large"]
SolverType = Literal["midpoint", "heun"]
InterpolationType = Literal["linear", "log_linear"]


@dataclasses.dataclass(frozen=True)
class SolverOptions:
  """Options of diffusers' schedulers, under their names there.

  Attributes:
    predict_x0: UniPC and DPM-Solver integrate x0; false is eps (Lu et al.
      2022a, which diffusers calls "dpmsolver").
    solver_type: of DPM-Solver: which second-order formula.
    lower_order_final: with fewer than 15 steps, the last ones of DPM-Solver and
      DEIS are of lower order; those of UniPC for any number of steps.
    euler_at_final: the last step of DPM-Solver is of order 1.
    disable_corrector: numbers of UniPC's steps that are not corrected.
    variance_type: of DDPM's noise: the posterior's variance, or beta.
    timestep_scaling: of LCM's boundary condition.
    original_inference_steps: of the times that LCM and TCD choose from.
    interpolation_type: of Euler's sigmas; with compat alone.
    sigma_min, sigma_max: ends of the karras, exponential and beta spacings in
      place of the schedule's; with compat alone.
    lambda_min_clipped: DPM-Solver starts at this ln(signal / sigma) at least;
      with compat alone.

  Raises:
    ValueError: at construction, if a value is out of range.
  """

  predict_x0: bool = True
  solver_type: SolverType = "midpoint"
  lower_order_final: bool = True
  euler_at_final: bool = False
  disable_corrector: tuple[int, ...] = ()
  variance_type: VarianceType = "fixed_small"
  timestep_scaling: float | int = 10.0
  original_inference_steps: int = 50
  interpolation_type: InterpolationType = "linear"
  sigma_min: float | int | None = None
  sigma_max: float | int | None = None
  lambda_min_clipped: float | int | None = None

  def __post_init__(self):
    for name, values in (
      ("solver_type", SolverType),
      ("variance_type", VarianceType),
      ("interpolation_type", InterpolationType),
    ):
      if getattr(self, name) not in get_args(values):
        raise ValueError(
          f"{name} must be {' or '.join(get_args(values))}, got "
          f"{getattr(self, name)!r}"
        )
    for name in ("sigma_min", "sigma_max", "timestep_scaling"):
      value = getattr(self, name)
      if value is not None and not 0 < value < math.inf:
        raise ValueError(f"{name} must be above 0, got {value!r}")
    if self.original_inference_steps < 1:
      raise ValueError(
        "original_inference_steps must be 1 or more, got "
        f"{self.original_inference_steps}"
      )

  @property
  def changed(self) -> dict[str, Any]:
    """Those that differ from their defaults."""
    return {
      field.name: getattr(self, field.name)
      for field in dataclasses.fields(self)
      if getattr(self, field.name) != field.default
    }


ENDS = ("sigma_min", "sigma_max")
# Those that choose noise levels, and not how to step between them.
WITH_COMPAT = ("interpolation_type", *ENDS, "lambda_min_clipped")
DPM = ("predict_x0", "solver_type", "lower_order_final", *ENDS)
