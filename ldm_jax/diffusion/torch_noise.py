"""The normal numbers that torch draws on a CPU, for images of a known seed.

The same seed then gives the same first latents as in other programs. All is as
in torch 2: its Mersenne Twister (aten/src/ATen/core/MT19937RNGEngine.h) and its
two ways of making normal numbers (ATen/native/cpu/DistributionTemplates.h and
ATen/core/DistributionsHelper.h), in float32, on a CPU with AVX2. Without AVX2
torch itself draws numbers that are up to 3e-6 apart; a GPU draws others.
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
    ValueError: a seed that torch would not take.
  """
  return TorchGenerator(seed).normal(shape)


class TorchGenerator:
  """torch.Generator().manual_seed(seed): each call goes on after the last."""

  def __init__(self, seed: int):
    """Takes seeds of 64 bits, of which torch uses the lower 32.

    Raises:
      ValueError: it is below -2^63 or above 2^64 - 1.
    """
    if not -(2**63) <= seed < 2**64:
      raise ValueError(
        f"seed {seed} does not fit into 64 bits; try {seed % 2**32}"
      )
    self._twister = np.random.MT19937()
    np.random.RandomState(self._twister).seed(seed % 2**32)  # Knuth's, in place
    self._spare = None  # the sine to the last cosine that was drawn alone

  def normal(self, shape: Sequence[int]) -> Float32[np.ndarray, "..."]:
    """torch.randn(shape, generator=self), float32, to 1e-6."""
    size = math.prod(shape)
    if size < BLOCK:
      values = np.array([self._draw_one() for _ in range(size)], np.float32)
    else:
      values = self._draw_blocks(size)
    return values.reshape(shape)

  def _draw_blocks(self, size):
    """Box and Muller (1958) within blocks of sixteen.

    Where sixteen do not divide the size, the last sixteen numbers are drawn
    once more, over what lay there.
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

  def _draw_one(self):
    """Box and Muller's cosine; their sine is kept for the next call."""
    if self._spare is not None:
      value, self._spare = self._spare, None
      return value
    turn, length = self._uniform_double(), self._uniform_double()
    radius = math.sqrt(-2 * math.log1p(-length))
    self._spare = radius * math.sin(2 * math.pi * turn)
    return radius * math.cos(2 * math.pi * turn)

  def _uniform_double(self):
    """In [0, 1), with the 53 bits that float64 holds; high words first."""
    high, low = map(int, self._twister.random_raw(2))
    return ((high << 32 | low) & (2**53 - 1)) * 2.0**-53


def _box_muller(uniform):
  """sqrt(-2 ln(1 - u_j)) (cos, sin)(2 pi u_{j + 8}), in blocks of sixteen.

  Angles are rounded to float32, as torch has them: with float64 angles numbers
  would be 2e-6 off. The rest is in float64, and rounded once.
  """
  lengths, turns = uniform.reshape(-1, 2, BLOCK // 2).swapaxes(0, 1)
  radius = np.sqrt(-2 * np.log(1 - lengths.astype(np.float64)))
  angles = (TWO_PI * turns).astype(np.float64)
  pairs = radius * np.cos(angles), radius * np.sin(angles)
  return np.stack(pairs, axis=1).reshape(-1).astype(np.float32)
