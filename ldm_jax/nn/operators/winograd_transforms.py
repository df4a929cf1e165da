"""The matrices of Winograd's F(2 x 2, 3 x 3), along one axis of a tile."""

from jaxtyping import Array


def transform_pixels(d: list[Array]) -> list[Array]:
  """B^T d."""
  return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]


def transform_kernel(g: list[Array]) -> list[Array]:
  """G g."""
  outer, inner = (g[0] + g[2]) * 0.5, g[1] * 0.5
  return [g[0], outer + inner, outer - inner, g[2]]


def gather_outputs(m: list[Array]) -> list[Array]:
  """A^T m."""
  return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]


def spread_outputs(y: list[Array]) -> list[Array]:
  """A y."""
  return [y[0], y[0] + y[1], y[0] - y[1], -y[1]]


def gather_kernel(u: list[Array]) -> list[Array]:
  """G^T u."""
  outer, inner = (u[1] + u[2]) * 0.5, (u[1] - u[2]) * 0.5
  return [u[0] + outer, inner, outer + u[3]]
