"""Weights in 8-bit floats with a scale each, as ComfyUI writes them.

X.weight is multiplied by X.scale_weight, or X.weight_scale: one number, or one
for each output. Scales of activations and marks are passed over.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from ldm_jax.errors import WeightsError

_SCALES = ("scale_weight", "weight_scale")
_PASSED_OVER = ("scale_input", "input_scale", "scaled_fp8", "comfy_quant")
# Of formats that are not read: bitsandbytes, GPTQ, DeepSeek's blocks.
_REFUSED = {
  "absmax": "bitsandbytes",
  "quant_map": "bitsandbytes",
  "SCB": "bitsandbytes",
  "qweight": "GPTQ or AWQ",
  "weight_scale_inv": "8-bit blocks",
  "weight_scale_2": "4-bit floats",
}
_FLOAT8 = "float8_"


def scaled(tensors: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
  """The tensors with every scale multiplied in, as they are read.

  Tensors without scales are returned as they are.

  Raises:
    WeightsError: they are quantised in another way, which is named.
  """
  for name in tensors:
    last = name.rpartition(".")[2]
    if last in _REFUSED:
      raise WeightsError(
        f"{name} is a tensor of weights quantised by {_REFUSED[last]}, which "
        "are not read; save the model in float16, bfloat16 or 8-bit floats"
      )
  last_of = {name: name.rpartition(".")[2] for name in tensors}
  scales = {
    f"{name.removesuffix(last)}weight": name
    for name, last in last_of.items()
    if last in _SCALES
  }
  unused = {n for n, last in last_of.items() if last in _PASSED_OVER}
  if not scales and not unused:
    return tensors
  for weight, scale in scales.items():
    if weight not in tensors:
      raise WeightsError(f"{scale} scales {weight}, which is not in the file")
    _check_scale(scale, tensors[scale], weight, tensors[weight])
  return _Scaled(tensors, scales, unused | set(scales.values()))


def _check_scale(
  scale: str, factors: np.ndarray, weight: str, tensor: np.ndarray
) -> None:
  """Raises WeightsError for a scale that does not fit its weight."""
  if not tensor.dtype.name.startswith(_FLOAT8):
    raise WeightsError(
      f"{weight} holds {tensor.dtype} and has a scale; needed are 8-bit floats"
    )
  is_finite = np.isfinite(np.asarray(factors, np.float32)).all()
  if factors.size not in (1, *tensor.shape[:1]) or not is_finite:
    raise WeightsError(
      f"{scale} has shape {factors.shape} for {tensor.shape}; needed is one "
      "finite number, or one for each output"
    )


class _Scaled(Mapping):
  """A view of tensors, of which some are multiplied when they are read."""

  def __init__(
    self,
    tensors: Mapping[str, np.ndarray],
    scales: Mapping[str, str],
    hidden: set[str],
  ):
    self._tensors, self._scales, self._hidden = tensors, scales, hidden

  def __getitem__(self, name: str) -> np.ndarray:
    if name in self._hidden:
      raise KeyError(name)
    tensor = self._tensors[name]
    if name not in self._scales:
      return tensor
    own = self._scales[name]
    scale = np.asarray(self._tensors[own], np.float32)
    shape = (-1,) + (1,) * (tensor.ndim - 1)
    return tensor.astype(np.float32) * scale.reshape(shape)

  def __iter__(self) -> Iterator[str]:
    return (name for name in self._tensors if name not in self._hidden)

  def __len__(self) -> int:
    return len(self._tensors) - len(self._hidden)
