"""How many operations a program asks for, and how many a device can do."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax

# Dense bfloat16 operations a second of one device as jax counts them, from the
# makers' data sheets (NVIDIA's without sparsity). v4's two cores are one
# device; v2, v3 and v7x have one device per core.
PEAKS = {
  "TPU v2": 22.5e12,
  "TPU v3": 61.5e12,
  "TPU v4": 275e12,
  "TPU v5 lite": 197e12,
  "TPU v5e": 197e12,
  "TPU v5": 459e12,
  "TPU v5p": 459e12,
  "TPU v6 lite": 918e12,
  "TPU v6e": 918e12,
  "TPU7x": 1153.5e12,
  "NVIDIA V100": 125e12,
  "NVIDIA A100": 312e12,
  "NVIDIA L4": 121e12,
  "NVIDIA H100": 989e12,
  "NVIDIA H200": 989e12,
  "NVIDIA B200": 2250e12,
}


def peak(kind: str) -> float | None:
  """Of a device by its `device_kind`; None where nobody wrote it down.

  The longest name that the kind begins with counts: "NVIDIA H100 80GB HBM3".
  """
  names = [name for name in PEAKS if kind.startswith(name)]
  return PEAKS[max(names, key=len)] if names else None


def count(function: Callable, *args: Any) -> int:
  """Multiplications and additions of matrix products and convolutions.

  By the jaxpr, each scan as often as it turns; XLA's own analysis counts a
  loop's body once. Where a condition decides, the dearer branch counts; a loop
  of unknown length counts once. Zeros that a convolution inserts or pads with
  count only where they lie inside its window.

  Args:
    args: of `function`, arrays or their shapes; nothing is computed.
  """
  return _of(jax.make_jaxpr(function)(*args).jaxpr)


def equations(jaxpr: Any) -> Iterator[Any]:
  """All equations of a jaxpr, those that an equation calls behind it."""
  for equation in jaxpr.eqns:
    yield equation
    for inner in _inside(equation.params):
      yield from equations(inner)


def _of(jaxpr: Any) -> int:
  return sum(_equation(equation) for equation in jaxpr.eqns)


def _equation(equation: Any) -> int:
  name, params = equation.primitive.name, equation.params
  if name == "dot_general":
    return _product(equation)
  if name == "conv_general_dilated":
    return _convolution(equation)
  if name == "cond":
    return max(_of(branch.jaxpr) for branch in params["branches"])
  inner = sum(_of(jaxpr) for jaxpr in _inside(params))
  return inner * params["length"] if name == "scan" else inner


def _inside(params: dict[str, Any]) -> list[Any]:
  """The jaxprs an equation calls."""
  found = []
  for value in params.values():
    for each in value if isinstance(value, (tuple, list)) else [value]:
      each = getattr(each, "jaxpr", each)  # a closed one holds an open one
      if hasattr(each, "eqns"):
        found.append(each)
  return found


def _product(equation: Any) -> int:
  (contracted, _), _ = equation.params["dimension_numbers"]
  left, out = equation.invars[0].aval, equation.outvars[0].aval
  depth = math.prod(left.shape[axis] for axis in contracted)
  return 2 * math.prod(out.shape) * depth


def _convolution(equation: Any) -> int:
  """Every output reads a window of every channel of its group.

  A gradient of a strided convolution spreads what it reads by zeros, which
  are not multiplied.
  """
  params = equation.params
  kernel, out = equation.invars[1].aval, equation.outvars[0].aval
  _, channels, *window = params["dimension_numbers"].rhs_spec
  size = math.prod(kernel.shape[axis] for axis in window)
  total = 2 * math.prod(out.shape) * size * kernel.shape[channels]
  return total // math.prod(params["lhs_dilation"])
