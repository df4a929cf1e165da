"""The changes of a weight that adapters describe, as torch has the weight.

LoRA (Hu et al. 2021), LoHa (Hyeon-Woo et al. 2022), LoKr (Yeh et al. 2024) and
differences that are stored as they are. A convolution's window follows the
input channels: [o i h w].

Every class of `Change` has the attributes `rank`, r, which alpha is divided by
(None if there is none), and `shape`, of the difference, or with the axes of the
window in that of the inputs. A call makes the difference itself, float32, at
scale 1 and without its factor alpha / r, of this shape or with more axes
flattened.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

Tensors = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class LowRank:
  """B A; with a core C of a Tucker decomposition, B C A.

  Attributes:
    down: A [r i ...], from features to the rank.
    up: B [o r].
    core: C [r r ...], the window; A has none then.
  """

  down: np.ndarray
  up: np.ndarray
  core: np.ndarray | None = None

  @classmethod
  def read(cls, tensors: Tensors) -> "LowRank":
    """Of lora_down, lora_up and lora_mid.

    Raises:
      ValueError: they do not fit each other.
    """
    down, up = tensors["lora_down"], tensors["lora_up"]
    core = tensors.get("lora_mid")
    _require(down.ndim >= 2 and up.ndim >= 2 and 0 < len(down) == up.shape[1])
    _require(up.size == len(up) * len(down))
    if core is not None:
      _require(core.ndim > 2 and core.shape[:2] == (len(down),) * 2)
      _require(down.size == len(down) * down.shape[1])
      core, down = _wide(core), down.reshape(down.shape[:2])
    return cls(_wide(down), _wide(up).reshape(len(up), -1), core)

  @property
  def rank(self) -> int:
    return len(self.down)

  @property
  def shape(self) -> tuple[int, ...]:
    window = () if self.core is None else self.core.shape[2:]
    return (len(self.up), *self.down.shape[1:], *window)

  def __call__(self) -> np.ndarray:
    if self.core is None:
      return self.up @ self.down.reshape(self.rank, -1)
    return _tucker(self.core, self.up.T, self.down)


@dataclasses.dataclass(frozen=True)
class Hadamard:
  """(B1 A1) * (B2 A2), element by element: LoHa.

  Attributes:
    pairs: (B [o r], A [r i...]) twice.
    cores: C [r r ...] of both, if they are Tucker decompositions; then B is
      [r o].
  """

  pairs: tuple[tuple[np.ndarray, np.ndarray], ...]
  cores: tuple[np.ndarray, ...] = ()

  @classmethod
  def read(cls, tensors: Tensors) -> "Hadamard":
    """Of hada_w1_a, ..., hada_w2_b, hada_t1 and hada_t2.

    Raises:
      ValueError: they do not fit each other.
    """
    pairs = tuple(
      (_wide(tensors[f"hada_w{i}_a"]), _wide(tensors[f"hada_w{i}_b"]))
      for i in (1, 2)
    )
    names = [f"hada_t{i}" for i in (1, 2) if f"hada_t{i}" in tensors]
    cores = tuple(_wide(tensors[name]) for name in names)
    _require(len(cores) in (0, 2))
    shapes = [_pair_shape(*pair, core) for pair, core in _zip(pairs, cores)]
    _require(shapes[0] == shapes[1])
    _require(len(pairs[0][1]) == len(pairs[1][1]))  # one alpha, so one rank
    return cls(pairs, cores)

  @property
  def rank(self) -> int:
    return len(self.pairs[0][1])

  @property
  def shape(self) -> tuple[int, ...]:
    core = self.cores[0] if self.cores else None
    return _pair_shape(*self.pairs[0], core)

  def __call__(self) -> np.ndarray:
    one, two = (_pair(*p, core) for p, core in _zip(self.pairs, self.cores))
    return one * two


@dataclasses.dataclass(frozen=True)
class Kronecker:
  """F1 (x) F2, each whole or a product: LoKr.

  Attributes:
    first: F1 [a c], or (B [a r], A [r c]).
    second: F2 [b d ...], or (B [b r], A [r d...]).
    core: C [r r ...] if the second is a Tucker decomposition; then its B is
      [r b].
  """

  first: tuple[np.ndarray, ...]
  second: tuple[np.ndarray, ...]
  core: np.ndarray | None = None

  @classmethod
  def read(cls, tensors: Tensors) -> "Kronecker":
    """Of lokr_w1 or lokr_w1_a and lokr_w1_b, and so on.

    Raises:
      ValueError: they do not fit each other.
    """
    first, second = (
      tuple(_wide(tensors[n]) for n in _factor_names(tensors, f"lokr_w{i}"))
      for i in (1, 2)
    )
    core = tensors.get("lokr_t2")
    core = None if core is None else _wide(core)
    _require(core is None or len(second) == 2)
    for factor, its_core in ((first, None), (second, core)):
      if len(factor) == 2:
        _pair_shape(*factor, its_core)
      _require(min(x.ndim for x in factor) >= 2)
    _require(len(first) == 2 or first[0].ndim == 2)
    return cls(first, second, core)

  @property
  def rank(self) -> int | None:
    """r of the second factor, else of the first; None if both are whole."""
    products = [f for f in (self.second, self.first) if len(f) == 2]
    return len(products[0][1]) if products else None

  @property
  def shape(self) -> tuple[int, ...]:
    rows, columns = _factor_shape(self.first, None)
    second_rows, *second_columns = _factor_shape(self.second, self.core)
    inputs, *window = second_columns
    return (rows * second_rows, columns * inputs, *window)

  def __call__(self) -> np.ndarray:
    second = _factor(self.second, self.core)
    # The window is the fastest axis, so it may be part of the inputs.
    return np.kron(_factor(self.first, None), second.reshape(len(second), -1))


@dataclasses.dataclass(frozen=True)
class Stored:
  """A difference, or a value, that is stored whole."""

  array: np.ndarray
  rank = None

  @property
  def shape(self) -> tuple[int, ...]:
    return self.array.shape

  def __call__(self) -> np.ndarray:
    return self.array


Change = LowRank | Hadamard | Kronecker | Stored


def stored(array: np.ndarray) -> Stored:
  """A stored difference in float32."""
  return Stored(_wide(array))


def _pair(up: np.ndarray, down: np.ndarray, core) -> np.ndarray:
  return up @ down if core is None else _tucker(core, up, down)


def _pair_shape(up: np.ndarray, down: np.ndarray, core) -> tuple[int, ...]:
  """The shape of B A, or of B C A.

  Raises:
    ValueError: the factors do not fit each other.
  """
  _require(up.ndim == down.ndim == 2 and len(down) > 0)
  if core is None:
    _require(up.shape[1] == len(down))
    return (len(up), down.shape[1])
  _require(core.ndim > 2 and core.shape[:2] == (len(up), len(down)))
  return (up.shape[1], down.shape[1], *core.shape[2:])


def _factor(factor: tuple[np.ndarray, ...], core) -> np.ndarray:
  return factor[0] if len(factor) == 1 else _pair(*factor, core)


def _factor_shape(factor: tuple[np.ndarray, ...], core) -> tuple[int, ...]:
  return factor[0].shape if len(factor) == 1 else _pair_shape(*factor, core)


def _factor_names(tensors: Tensors, name: str) -> tuple[str, ...]:
  """The names of a factor that is there whole or as a product, not as both."""
  pair = (f"{name}_a", f"{name}_b")
  found = [n for n in (name, *pair) if n in tensors]
  _require(found in ([name], list(pair)))
  return tuple(found)


def _tucker(core, up: np.ndarray, down: np.ndarray) -> np.ndarray:
  """[o i ...] of a core [p q ...], up [p o] and down [q i]."""
  return np.einsum("pq...,po,qi->oi...", core, up, down, optimize=True)


def _zip(pairs, cores):
  return zip(pairs, cores or (None, None), strict=True)


def _wide(array: np.ndarray) -> np.ndarray:
  return array.astype(np.float32)


def _require(is_true: bool) -> None:
  if not is_true:
    raise ValueError("the factors do not fit each other")
