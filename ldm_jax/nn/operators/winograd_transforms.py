"""Winograd's transforms for F(2 x 2, 3 x 3), along one axis of a tile."""

from jaxtyping import Array

from ldm_jax.nn.operators.transforms import Matrix, transposed

KERNEL: Matrix = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))  # G
OUTPUTS: Matrix = ((1, 1, 1, 0), (0, 1, -1, -1))  # A^T
SPREAD = transposed(OUTPUTS)  # A
GATHER = transposed(KERNEL)  # G^T


def transform_pixels(d: list[Array]) -> list[Array]:
  """B^T d."""
  return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]
