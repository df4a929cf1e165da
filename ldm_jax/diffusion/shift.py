"""Shifts of a flow's time towards noise, fixed or by the image's size."""

import dataclasses
import math
from typing import Any, Literal, Protocol, get_args, runtime_checkable

from ldm_jax.fields.limits import Count, Positive, check_limits

TimeShiftType = Literal["exponential", "linear"]


def shift_time(s: Any, shift: float) -> Any:
  """a s / (1 + (a - 1) s)  (Esser et al. 2024, eq. 23).

  The ratio of noise to image, s / (1 - s), becomes a times as large: what an
  image with a^2 times as many pixels needs to lose as much of its content.

  Args:
    s: times of the straight line, 0 the image and 1 pure noise.
    shift: a, above 0; 1 leaves the times as they are.
  """
  return shift * s / (1 + (shift - 1) * s)


@runtime_checkable
class SizedShift(Protocol):
  """A shift that depends on how many tokens an image has.

  Attributes:
    patch: side of a token, in latents.
  """

  patch: int

  def shift(self, tokens: int) -> float:
    """a of `shift_time` for an image of so many tokens."""
    ...


@dataclasses.dataclass(frozen=True)
class DynamicShift:
  """FLUX's: a = e^mu or mu, with mu linear in the number of tokens.

  mu is `base_shift` at `base_tokens` and `max_shift` at `max_tokens`. Names
  and defaults are those of diffusers' FlowMatchEulerDiscreteScheduler, where
  numbers of tokens are image_seq_len.

  Attributes:
    time_shift_type: "exponential" is a = e^mu, "linear" a = mu.
    patch: side of a token, in latents.
  """

  base_shift: float = 0.5
  max_shift: float = 1.15
  base_tokens: Count = 256
  max_tokens: Count = 4096
  time_shift_type: TimeShiftType = "exponential"
  patch: Count = 2

  def __post_init__(self):
    check_limits(self)
    if self.time_shift_type not in get_args(TimeShiftType):
      raise ValueError(
        f"time_shift_type={self.time_shift_type!r} must be one of "
        f"{', '.join(get_args(TimeShiftType))}"
      )
    check_finite(self, "base_shift", "max_shift")
    if self.max_tokens <= self.base_tokens:
      raise ValueError(
        f"max_tokens={self.max_tokens} must be above "
        f"base_tokens={self.base_tokens}"
      )
    is_linear = self.time_shift_type == "linear"
    if is_linear and min(self.base_shift, self.max_shift) <= 0:
      raise ValueError(
        "a linear shift must be above 0 at both numbers of tokens, got "
        f"base_shift={self.base_shift} max_shift={self.max_shift}"
      )

  def shift(self, tokens: int) -> float:
    """a for an image of so many tokens.

    Raises:
      ValueError: a linear shift is not above 0 there.
    """
    slope = (self.max_shift - self.base_shift) / (
      self.max_tokens - self.base_tokens
    )
    mu = self.base_shift + slope * (tokens - self.base_tokens)
    if self.time_shift_type == "exponential":
      return math.exp(mu)
    if mu <= 0:
      raise ValueError(
        f"the linear shift of {tokens} tokens is {mu:.3g}, and must be above 0"
      )
    return mu


@dataclasses.dataclass(frozen=True)
class ResolutionShift:
  """a = sqrt(tokens / base_tokens)  (Esser et al. 2024, section 5.3).

  The uncertainty of a constant image of m pixels at s equals that of one of n
  pixels at the time shifted by sqrt(m / n).

  Attributes:
    base_tokens: of the images for which times are not shifted.
    patch: side of a token, in latents.
  """

  base_tokens: Count = 256
  patch: Count = 2

  def __post_init__(self):
    check_limits(self)

  def shift(self, tokens: int) -> float:
    """a for an image of so many tokens."""
    return math.sqrt(tokens / self.base_tokens)


Shift = Positive | DynamicShift | ResolutionShift


def check_finite(node: object, *names: str) -> None:
  """Raises ValueError unless these fields are finite numbers."""
  for name in names:
    value = getattr(node, name)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value):
      raise ValueError(
        f"{type(node).__name__}.{name} must be a finite number, got {value!r}"
      )


def check_shift(shift: object, terminal: float | None = None) -> None:
  """Raises ValueError for a shift or a last time that there cannot be.

  A shift is a number above 0, or goes by the size; the last time is above 0
  and below 1.
  """
  if terminal is not None and not 0 < terminal < 1:
    raise ValueError(
      f"shift_terminal must be above 0 and below 1, got {terminal}"
    )
  is_number = isinstance(shift, int | float) and not isinstance(shift, bool)
  if is_number and 0 < shift < math.inf:
    return
  if isinstance(shift, type) or not isinstance(shift, SizedShift):
    raise ValueError(
      "shift must be a number above 0 or depend on the size (DynamicShift, "
      f"ResolutionShift), got {shift!r}"
    )


def resolved_shift(
  shift: float | SizedShift, latent_size: tuple[int, int] | None
) -> float:
  """The number a.

  Args:
    latent_size: height and width of the latents.

  Raises:
    ValueError: the shift depends on the size, and there is none.
  """
  if not isinstance(shift, SizedShift):
    return shift
  if latent_size is None:
    raise ValueError(
      f"a {type(shift).__name__} depends on the size of the latents; give it, "
      "or a number as shift"
    )
  height, width = latent_size
  return shift.shift((height // shift.patch) * (width // shift.patch))
