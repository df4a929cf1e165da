"""Changes of low rank, trained while the matrices themselves stay."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

FACTORS = {"lora_down", "lora_up"}  # no layer of ours is called so


@dataclasses.dataclass(frozen=True)
class LoRA:
  """W + (alpha / r) A B for chosen kernels  (Hu et al. 2021, section 4.1).

  A [... in r] is drawn as the paper's, B [r out] begins at 0: a fresh one
  changes nothing. Of a convolution A holds the window and B is 1 x 1.

  Attributes:
    rank: r.
    alpha: alpha / r is a scale of the change, so that r may be varied alone.
    where: a regular expression; kernels whose path it finds are adapted. Paths
      begin with unet/ or conditioners/; the default are the U-Net's attention
      layers, as kohya's and diffusers' trainers have them.
  """

  rank: int = 4
  alpha: float = 4.0
  where: str = r"^unet/.*attention[12]/(q|k|v|out)/kernel$"

  def __post_init__(self):
    if self.rank < 1:
      raise ValueError(f"LoRA.rank={self.rank} must be 1 or more")

  def init(self, key: Array, base: Any) -> dict[str, Any]:
    """Factors for every kernel of `base` that is found, in its places.

    Raises:
      ValueError: none is found.
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
      drawn = jax.random.fold_in(key, number)
      down = jax.random.uniform(drawn, shape, jnp.float32, -bound, bound)
      place = factors
      for name in names:
        place = place.setdefault(name, {})
      place |= {"lora_down": down, "lora_up": jnp.zeros((self.rank, out))}
    if not factors:
      raise ValueError(f"LoRA.where={self.where!r} finds no kernel")
    return factors

  def merge(self, base: Any, factors: Mapping[str, Any]) -> Any:
    """`base` with the changes added; what has no factors is shared."""
    if factors.keys() == FACTORS:
      down, up = factors["lora_down"], factors["lora_up"]
      change = down.reshape(-1, self.rank) @ up
      scale = self.alpha / self.rank
      change = scale * change.reshape(base.shape)
      return (base.astype(jnp.float32) + change).astype(base.dtype)
    return {
      name: self.merge(part, factors[name]) if name in factors else part
      for name, part in base.items()
    }
