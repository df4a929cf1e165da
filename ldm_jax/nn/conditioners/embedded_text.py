"""The outputs of text conditioners, computed before training."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from ldm_jax.nn.conditioners.embedders import Condition

PARTS = ("context", "vector")
NULL = "null"  # collection of variables with the unconditional output


@flax.struct.dataclass
class EmbeddedText:
  """A text conditioner's output for prompts, in place of their ids.

  Attributes:
    context: [b l d], or None.
    vector: [b v], or None.
  """

  # Any: as a tree it carries shapes and shardings as well as arrays.
  context: Any = None
  vector: Any = None

  def condition(self, module: nn.Module, drop: Bool[Array, " b"]) -> Condition:
    """The output, unconditional where `drop` is true, in float32.

    Args:
      module: the conditioner, whose variables hold the unconditional output in
        place of its text encoders; see `null_variables`.
    """

    def chosen(name: str) -> Array | None:
      rows = getattr(self, name)
      if rows is None:
        return None
      null = module.get_variable(NULL, name)
      is_dropped = drop.reshape(-1, *[1] * (rows.ndim - 1))
      # Stored in float16 for their size.
      return jnp.where(is_dropped, null, rows.astype(jnp.float32))

    return Condition(context=chosen("context"), vector=chosen("vector"))


def embedded_name(name: str, part: str) -> str:
  """The name of a part of a conditioner's output in a batch.

  Args:
    name: its input_key.
    part: one of PARTS.
  """
  return f"{name}_{part}"


def embedded_text(batch: Mapping[str, Any], name: str) -> EmbeddedText | None:
  """What a batch holds of a conditioner's outputs, or None.

  Args:
    name: its input_key.
  """
  found = {part: batch.get(embedded_name(name, part)) for part in PARTS}
  if all(array is None for array in found.values()):
    return None
  return EmbeddedText(**found)


def embed(
  module: nn.Module, variables: Any, ids: Any, drop: Bool[Array, " b"]
) -> dict[str, Array]:
  """A conditioner's outputs by part, without those that it does not have."""
  found = module.apply(variables, ids, drop)
  return {
    part: array for part in PARTS if (array := getattr(found, part)) is not None
  }


def null_variables(module: nn.Module, variables: Any, ids: Any) -> Any:
  """The variables with which a conditioner takes an `EmbeddedText`.

  Args:
    variables: its own, with its text encoders.
    ids: of one prompt, which is dropped.
  """
  run = jax.jit(embed, static_argnums=0)
  rows = run(module, variables, jnp.asarray(ids), jnp.ones((1,), bool))
  return {NULL: jax.tree.map(lambda x: x[0], rows)}
