"""LoRA: changes of low rank, trained while the kernels are frozen."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ldm_jax.fields.limits import Count, Positive, check_limits

FACTORS = {"lora_down", "lora_up"}  # names that no layer here has


@dataclasses.dataclass(frozen=True)
class LoRA:
  """W + (alpha / r) A B for chosen kernels  (Hu et al. 2021, section 4.1).

  A [... in r] is random as in the paper, B [r out] starts at 0, so that a new
  LoRA changes nothing. For a convolution, A has the window and B is 1 x 1.

  Attributes:
    rank: r.
    alpha: the change is scaled by alpha / r, so that r may be varied alone.
    where: a regular expression; kernels whose path matches are adapted. Paths
      start with unet/ or conditioners/; the default is the backbone's attention
      layers, as in kohya's and diffusers' trainers.
    rank_pattern: (regular expression of paths, r) for kernels with another r;
      the first that matches holds.
    alpha_pattern: (regular expression of paths, alpha), in the same way.
  """

  rank: Count = 4
  alpha: Positive = 4.0
  where: str = r"^unet/.*/(q|k|v|out)/kernel$"
  rank_pattern: tuple[tuple[str, int], ...] = ()
  alpha_pattern: tuple[tuple[str, float], ...] = ()

  def __post_init__(self):
    check_limits(self)
    _check_expression("where", self.where)
    for name, kind in (("rank_pattern", int), ("alpha_pattern", float)):
      _check_pattern(name, getattr(self, name), kind)

  def rank_of(self, path: str) -> int:
    """r of a kernel, by its path."""
    return _first_match(path, self.rank_pattern, self.rank)

  def alpha_of(self, path: str) -> float:
    """alpha of a kernel, by its path."""
    return _first_match(path, self.alpha_pattern, self.alpha)

  def init(self, key: Array, base: Any) -> dict[str, Any]:
    """New factors for every kernel of `base` that `where` matches.

    They have the structure of `base`.

    Raises:
      ValueError: `where` matches no kernel.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(base)
    factors: dict[str, Any] = {}
    for number, (path, leaf) in enumerate(leaves):
      names = [entry.key for entry in path]
      if leaf.ndim < 2 or not re.search(self.where, "/".join(names)):
        continue
      *window, out = leaf.shape
      rank = self.rank_of("/".join(names))
      shape = (*window, rank)
      bound = (leaf.size // out) ** -0.5
      kernel_key = jax.random.fold_in(key, number)
      down = jax.random.uniform(kernel_key, shape, jnp.float32, -bound, bound)
      node = factors
      for name in names:
        node = node.setdefault(name, {})
      node |= {"lora_down": down, "lora_up": jnp.zeros((rank, out))}
    if not factors:
      raise ValueError(f"LoRA.where={self.where!r} finds no kernel")
    return factors

  def merge(
    self, base: Any, factors: Mapping[str, Any], path: tuple[str, ...] = ()
  ) -> Any:
    """`base` with the changes added; arrays without factors are shared.

    Args:
      path: of `base` within the tree that `init` was given.
    """
    if factors.keys() == FACTORS:
      down, up = factors["lora_down"], factors["lora_up"]
      rank = down.shape[-1]
      change = down.reshape(-1, rank) @ up
      scale = self.alpha_of("/".join(path)) / rank
      change = scale * change.reshape(base.shape)
      return (base.astype(jnp.float32) + change).astype(base.dtype)
    return {
      name: self.merge(child, factors[name], (*path, name))
      if name in factors
      else child
      for name, child in base.items()
    }


def _first_match(path: str, pattern: tuple[tuple[str, Any], ...], default: Any):
  matching = (value for where, value in pattern if re.search(where, path))
  return next(matching, default)


def _check_expression(name: str, expression: Any) -> None:
  """Raises ValueError unless it is a regular expression."""
  try:
    re.compile(expression)
  except (re.error, TypeError) as error:
    raise ValueError(
      f"LoRA.{name}: needs a regular expression, got {expression!r} ({error})"
    ) from None


def _check_pattern(name: str, pattern: Any, kind: type) -> None:
  """Raises ValueError unless it is pairs of expressions and numbers above 0."""
  is_pairs = isinstance(pattern, tuple) and all(
    isinstance(pair, tuple) and len(pair) == 2 for pair in pattern
  )
  if not is_pairs:
    raise ValueError(
      f"LoRA.{name}: needs pairs of a regular expression and a number, got "
      f"{pattern!r}"
    )
  for where, value in pattern:
    _check_expression(name, where)
    is_number = type(value) is int or (kind is float and type(value) is float)
    if not is_number or not 0 < value < math.inf:
      raise ValueError(
        f"LoRA.{name}: needs {'whole ' * (kind is int)}numbers above 0, got "
        f"{value!r} for {where!r}"
      )
