"""Learned positions of a square of patches, for other numbers of patches."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# The coefficients of the cubic kernels (Keys 1981) in torch's interpolate.
_CUBIC, _ANTIALIASED_CUBIC = -0.75, -0.5


def resize_positions(
  grid: Float[Array, "n n d"],
  shape: tuple[int, int],
  *,
  is_antialiased: bool = False,
  offset: float = 0.0,
) -> Float[Array, "h w d"]:
  """Bicubic interpolation as torch's, with pixels' centres at halves.

  `Dinov2Model` in transformers does not antialias, `Dinov2WithRegistersModel`
  does, and neither has an offset. The authors' code adds an offset of 0.1 to
  `shape` in the scale, without registers only.

  Args:
    shape: height and width, in patches.
    is_antialiased: widen the kernel where the grid shrinks.
    offset: what the scale adds to `shape`: one step in the result is
      n / (length + offset) steps in the grid.
  """
  side = grid.shape[0]
  if tuple(shape) == (side, side):
    return grid
  rows, columns = (
    interpolation_matrix(side, length, is_antialiased, offset)
    for length in shape
  )
  return jnp.einsum(
    "hn,nmd,wm->hwd",
    rows,
    grid.astype(jnp.float32),
    columns,
    precision=jax.lax.Precision.HIGHEST,
  )


def interpolation_matrix(
  length: int, resized: int, is_antialiased: bool, offset: float = 0.0
) -> Float[Array, "resized length"]:
  """The weights of `length` samples in each of `resized` ones.

  With antialiasing the kernel is cut off at the ends of the samples and
  renormalised, without it the samples at the ends are repeated.
  """
  scale = length / (resized + offset)
  # In Python's floats: float32 would round a centre off its sample.
  centers = [scale * (i + 0.5) - 0.5 for i in range(resized)]
  if is_antialiased:
    width = max(scale, 1.0)
    rows = [
      [_keys((j - center) / width, _ANTIALIASED_CUBIC) for j in range(length)]
      for center in centers
    ]
    rows = [[weight / sum(row) for weight in row] for row in rows]
    return jnp.asarray(rows, jnp.float32)
  rows = [[0.0] * length for _ in centers]
  for row, center in zip(rows, centers, strict=True):
    first = math.floor(center)
    for tap in range(first - 1, first + 3):
      weight = _keys(center - tap, _CUBIC)
      row[min(max(tap, 0), length - 1)] += weight
  return jnp.asarray(rows, jnp.float32)


def _keys(x: float, a: float) -> float:
  """The cubic kernel of Keys 1981, eq. 8, with the coefficient a."""
  x = abs(x)
  if x <= 1:
    return ((a + 2) * x - (a + 3)) * x * x + 1
  return a * (((x - 5) * x + 8) * x - 4) if x < 2 else 0.0
