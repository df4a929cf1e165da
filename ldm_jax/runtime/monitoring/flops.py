"""FLOPs of a program, counted in its jaxpr, and peak FLOP/s of devices."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax

# Dense bfloat16 FLOP/s of one jax device, from the data sheets (NVIDIA's
# without sparsity). v4's two cores are one device; v2, v3 and v7x have one
# device per core.
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
  """Peak bfloat16 FLOP/s by `device_kind`; None for unknown devices.

  The longest name that is a prefix is taken: "NVIDIA H100 80GB HBM3".
  """
  names = [name for name in PEAKS if kind.startswith(name)]
  return PEAKS[max(names, key=len)] if names else None


def count(function: Callable, *args: Any) -> int:
  """Multiplications and additions of matrix products and convolutions.

  Counted in the jaxpr, the body of a scan times its length (XLA's own analysis
  counts it once). Of a conditional the costlier branch counts; a while loop
  counts once. Zeros that a strided convolution's gradient inserts do not count,
  zeros of padding do.

  Args:
    args: of `function`, arrays or their shapes; nothing is computed.
  """
  return _jaxpr_flops(jax.make_jaxpr(function)(*args).jaxpr)


def equations(jaxpr: Any) -> Iterator[Any]:
  """All equations of a jaxpr, each followed by those that it calls."""
  for equation in jaxpr.eqns:
    yield equation
    for inner in _inner_jaxprs(equation.params):
      yield from equations(inner)


def _jaxpr_flops(jaxpr: Any) -> int:
  return sum(_equation_flops(equation) for equation in jaxpr.eqns)


def _equation_flops(equation: Any) -> int:
  name, params = equation.primitive.name, equation.params
  if name == "dot_general":
    return _product_flops(equation)
  if name == "conv_general_dilated":
    return _convolution_flops(equation)
  if name == "cond":
    return max(_jaxpr_flops(branch.jaxpr) for branch in params["branches"])
  inner = sum(_jaxpr_flops(jaxpr) for jaxpr in _inner_jaxprs(params))
  return inner * params["length"] if name == "scan" else inner


def _inner_jaxprs(params: dict[str, Any]) -> list[Any]:
  """The jaxprs that an equation calls."""
  found = []
  for value in params.values():
    for each in value if isinstance(value, (tuple, list)) else [value]:
      each = getattr(each, "jaxpr", each)  # a closed one holds an open one
      if hasattr(each, "eqns"):
        found.append(each)
  return found


def _product_flops(equation: Any) -> int:
  (contracted, _), _ = equation.params["dimension_numbers"]
  left, out = equation.invars[0].aval, equation.outvars[0].aval
  depth = math.prod(left.shape[axis] for axis in contracted)
  return 2 * math.prod(out.shape) * depth


def _convolution_flops(equation: Any) -> int:
  """2 x outputs x window x input channels of a group.

  The gradient of a strided convolution inserts zeros into its input
  (`lhs_dilation`), whose products are not counted.
  """
  params = equation.params
  kernel, out = equation.invars[1].aval, equation.outvars[0].aval
  _, channels, *window = params["dimension_numbers"].rhs_spec
  size = math.prod(kernel.shape[axis] for axis in window)
  total = 2 * math.prod(out.shape) * size * kernel.shape[channels]
  return total // math.prod(params["lhs_dilation"])
