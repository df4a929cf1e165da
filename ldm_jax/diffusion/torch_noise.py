"""torch's normal random numbers of a seed, as drawn on a CPU.

The same seed then gives the same initial latents as in programs that use torch.
As in torch 2: its Mersenne Twister (aten/src/ATen/core/MT19937RNGEngine.h) and
its two algorithms for normal numbers (ATen/native/cpu/DistributionTemplates.h
and ATen/core/DistributionsHelper.h), in float32, on a CPU with AVX2.
Without AVX2 torch itself draws numbers that differ by up to 3e-6; a GPU draws
others.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

BLOCK = 16  # numbers that are made together, from draws j and j + 8
TWO_PI = np.float32(2 * math.pi)


def torch_normal(seed: int, shape: Sequence[int]) -> Float32[np.ndarray, "..."]:
  """torch.manual_seed(seed); torch.randn(shape), to 1e-6.

  Raises:
    ValueError: the seed is out of torch's range.
  """
  return TorchGenerator(seed).normal(shape)


class TorchGenerator:
  """torch.Generator().manual_seed(seed); calls continue one sequence."""

  def __init__(self, seed: int):
    """Seeds have 64 bits, of which torch uses the lower 32.

    Raises:
      ValueError: the seed is below -2^63 or above 2^64 - 1.
    """
    if not -(2**63) <= seed < 2**64:
      raise ValueError(
        f"seed {seed} does not fit into 64 bits; try {seed % 2**32}"
      )
    self._twister = np.random.MT19937()
    np.random.RandomState(self._twister).seed(seed % 2**32)  # Knuth's, in place
    self._spare = None  # the sine of the last pair of numbers drawn one by one

  def normal(self, shape: Sequence[int]) -> Float32[np.ndarray, "..."]:
    """torch.randn(shape, generator=self), float32, to 1e-6."""
    size = math.prod(shape)
    if size < BLOCK:
      values = np.array([self._normal_one() for _ in range(size)], np.float32)
    else:
      values = self._normal_blocks(size)
    return values.reshape(shape)

  def _normal_blocks(self, size):
    """Box and Muller (1958) within blocks of sixteen.

    Where sixteen do not divide the size, the last sixteen numbers are drawn
    again and replaced.
    """
    uniform = self._uniform(size)
    whole = size - size % BLOCK
    values = np.empty(size, np.float32)
    values[:whole] = _box_muller(uniform[:whole])
    if whole < size:
      values[-BLOCK:] = _box_muller(self._uniform(BLOCK))
    return values

  def _uniform(self, size):
    """In [0, 1), with the 24 bits that float32 holds."""
    draws = self._twister.random_raw(size) & (2**24 - 1)
    return draws.astype(np.float32) * np.float32(2**-24)

  def _normal_one(self):
    """Box and Muller's cosine; the sine is kept for the next number."""
    if self._spare is not None:
      value, self._spare = self._spare, None
      return value
    angle, length = self._uniform_double(), self._uniform_double()
    radius = math.sqrt(-2 * math.log1p(-length))
    self._spare = radius * math.sin(2 * math.pi * angle)
    return radius * math.cos(2 * math.pi * angle)

  def _uniform_double(self):
    """In [0, 1), with the 53 bits that float64 holds; high words first."""
    high, low = map(int, self._twister.random_raw(2))
    return ((high << 32 | low) & (2**53 - 1)) * 2.0**-53


def _box_muller(uniform):
  """sqrt(-2 ln(1 - u_j)) (cos, sin)(2 pi u_{j + 8}), in blocks of sixteen.

  Angles are rounded to float32, as torch has them: with float64 angles numbers
  would be 2e-6 off. The rest is in float64, and rounded once.
  """
  lengths, angles = uniform.reshape(-1, 2, BLOCK // 2).swapaxes(0, 1)
  radius = np.sqrt(-2 * np.log(1 - lengths.astype(np.float64)))
  angles = (TWO_PI * angles).astype(np.float64)
  pairs = radius * np.cos(angles), radius * np.sin(angles)
  return np.stack(pairs, axis=1).reshape(-1).astype(np.float32)
