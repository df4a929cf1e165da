"""Jitted functions that equal modules of one process share."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

SIZE = 8  # results kept of each function


class Structure(NamedTuple):
  """A tree's shapes, dtypes and form: hashable, unlike the tree.

  Attributes:
    form: of the tree.
    leaves: the shape and dtype of each array.
  """

  form: Any
  leaves: tuple[jax.ShapeDtypeStruct, ...]

  @classmethod
  def of(cls, tree: Any) -> "Structure":
    shapes = jax.eval_shape(lambda tree: tree, tree)
    leaves, form = jax.tree.flatten(shapes)
    return cls(form, tuple(leaves))

  @property
  def shapes(self) -> Any:
    """The tree, with `jax.ShapeDtypeStruct` for its arrays."""
    return jax.tree.unflatten(self.form, self.leaves)


def shared_by_value(build: Callable) -> Callable:
  """`build`, with the results of its latest arguments kept.

  For functions that make jitted functions of modules and shardings: `jax.jit`
  compiles anew for each function that it is given, and equal arguments then
  give the same one, so that a second pipeline of a model, or a second run of a
  task, traces and compiles nothing. Arguments that have no hash, such as a
  module that holds arrays, are not kept.
  """
  kept = functools.lru_cache(SIZE)(build)

  @functools.wraps(build)
  def get(*args: Any) -> Any:
    try:
      hash(args)
    except TypeError:
      return build(*args)
    return kept(*args)

  return get
