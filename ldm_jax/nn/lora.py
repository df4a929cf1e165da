"""LoRA: changes of low rank, trained while the kernels are frozen."""

import dataclasses
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
      start with unet/ or conditioners/; the default is the U-Net's attention
      layers, as in kohya's and diffusers' trainers.
  """

  rank: Count = 4
  alpha: Positive = 4.0
  where: str = r"^unet/.*attention[12]/(q|k|v|out)/kernel$"

  def __post_init__(self):
    check_limits(self)

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
      shape = (*window, self.rank)
      bound = (leaf.size // out) ** -0.5
      kernel_key = jax.random.fold_in(key, number)
      down = jax.random.uniform(kernel_key, shape, jnp.float32, -bound, bound)
      node = factors
      for name in names:
        node = node.setdefault(name, {})
      node |= {"lora_down": down, "lora_up": jnp.zeros((self.rank, out))}
    if not factors:
      raise ValueError(f"LoRA.where={self.where!r} finds no kernel")
    return factors

  def merge(self, base: Any, factors: Mapping[str, Any]) -> Any:
    """`base` with the changes added; arrays without factors are shared."""
    if factors.keys() == FACTORS:
      down, up = factors["lora_down"], factors["lora_up"]
      change = down.reshape(-1, self.rank) @ up
      scale = self.alpha / self.rank
      change = scale * change.reshape(base.shape)
      return (base.astype(jnp.float32) + change).astype(base.dtype)
    return {
      name: self.merge(child, factors[name]) if name in factors else child
      for name, child in base.items()
    }
