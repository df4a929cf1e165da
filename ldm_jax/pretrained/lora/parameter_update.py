"""The update of one parameter by a LoRA or another adapter."""

import dataclasses
import math

import numpy as np

from ldm_jax.pretrained.lora.changes import Change
from ldm_jax.pretrained.lora.module_names import Target
from ldm_jax.weights.naming.layouts import LAYOUTS, take


@dataclasses.dataclass(frozen=True)
class Magnitude:
  """The norms that DoRA gives to a weight  (Liu et al. 2024, eq. 5).

  Attributes:
    norms: one for each output, or for each input.
    axis: of the weight as torch has it: 0 for outputs, 1 for inputs.
  """

  norms: np.ndarray
  axis: int

  def apply(self, weight: np.ndarray) -> np.ndarray:
    """m V / |V|; rows of zeros stay zeros."""
    others = tuple(i for i in range(weight.ndim) if i != self.axis)
    norms = np.sqrt(np.square(weight).sum(others, keepdims=True))
    wanted = self.norms.reshape(norms.shape)
    zeros = np.zeros_like(wanted)
    return weight * np.divide(wanted, norms, out=zeros, where=norms > 0)


@dataclasses.dataclass(frozen=True)
class Update:
  """The update of one parameter.

  Attributes:
    factor: alpha / r.
    magnitude: of a DoRA.
    is_value: the change is a value that replaces the parameter.
  """

  target: Target
  change: Change
  factor: float = 1.0
  magnitude: Magnitude | None = None
  is_value: bool = False

  def apply(self, leaf: np.ndarray, scale: float) -> np.ndarray:
    """leaf + scale (updated - leaf), in our layout.

    Args:
      leaf: float32.
    """
    layout = LAYOUTS[self.target.row.layout]
    change = layout.from_foreign(self._change())
    if self.is_value:
      return leaf + np.float32(scale) * (change - leaf)
    if self.magnitude is None:
      return leaf + np.float32(scale * self.factor) * change
    moved = leaf + np.float32(self.factor) * change
    moved = self.magnitude.apply(layout.to_foreign(moved))
    return leaf + np.float32(scale) * (layout.from_foreign(moved) - leaf)

  def _change(self) -> np.ndarray:
    """The difference in the parameter's foreign shape, its part of a stack."""
    row, change = self.target.row, self.change()
    needed = row.foreign_shape()
    if change.size == math.prod(needed):
      change = change.reshape(needed)
      return change if row.part is None else take(change, row.part)
    outputs, _, *window = needed
    change = change.reshape(outputs, self.target.inputs, *window)
    missing = needed[1] - self.target.inputs
    ends = [(0, 0), (0, missing), *[(0, 0)] * len(window)]
    return np.pad(change, ends)


def fits(shape: tuple[int, ...], target: Target) -> bool:
  """Whether a change of that shape fits a parameter.

  Axes of length one at the end are free, as everywhere: proj_in is a matrix in
  some models and a convolution in others; windows may be part of the inputs.
  """
  needed = target.row.foreign_shape()
  shapes = [needed]
  if target.inputs is not None and target.inputs < needed[1]:
    shapes.append((needed[0], target.inputs, *needed[2:]))
  shapes += [(s[0], math.prod(s[1:])) for s in shapes if len(s) > 1]
  return _without_ones(shape) in map(_without_ones, shapes)


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
  while shape and shape[-1] == 1:
    shape = shape[:-1]
  return shape
