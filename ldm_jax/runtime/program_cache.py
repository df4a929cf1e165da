"""Jitted functions that equal modules of one process share."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.extend.core import jaxpr_as_fun

from ldm_jax.runtime.stored_programs import stored_value

SIZE = 8  # results kept of each function that makes programs


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


def shared_by_value(build: Callable, size: int = SIZE) -> Callable:
  """`build`, with the results of its latest arguments kept.

  For functions that make jitted functions of modules and shardings: `jax.jit`
  compiles anew for each function that it is given, and equal arguments then
  give the same one, so that a second pipeline of a model, or a second run of a
  task, traces and compiles nothing. Arguments that have no hash, such as a
  module that holds arrays, are not kept.

  Args:
    size: the number of results that are kept.
  """
  kept = functools.lru_cache(size)(build)

  @functools.wraps(build)
  def get(*args: Any) -> Any:
    try:
      hash(args)
    except TypeError:
      return build(*args)
    return kept(*args)

  return get


class Initialization(NamedTuple):
  """How a training state is initialised.

  Attributes:
    shapes: of the state.
    function: (key, batch, frozen) -> state, without another trace of `init`.
  """

  shapes: Any
  function: Callable


@shared_by_value
def initialization(
  task: Any, batch: Structure, frozen: Structure
) -> Initialization:
  """Traces `task.init`, at most once for its shapes and its values.

  Args:
    task: has `init(key, batch, frozen)`, as a training task has.
  """

  @functools.cache
  def trace() -> Any:
    key = jax.eval_shape(lambda: jax.random.key(0))
    traced = jax.make_jaxpr(task.init, return_shape=True)
    return traced(key, batch.shapes, frozen.shapes)

  def init(key: jax.Array, batch: Any, frozen: Any) -> Any:
    jaxpr, shapes = trace()
    leaves = jaxpr_as_fun(jaxpr)(*jax.tree.leaves((key, batch, frozen)))
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)

  parts = "state shapes", task, batch, frozen
  return Initialization(stored_value(parts, lambda: trace()[1]), init)
