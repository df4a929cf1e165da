"""A stack of equal blocks as one scan, which compiles once for all of them."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from ldm_jax.fields.stack_names import STACK, stack_name


def apply_blocks(
  network: nn.Module,
  make: Callable[..., nn.Module],
  names: list[str],
  call: Callable[[nn.Module, Any], Any],
  h: Any,
) -> Any:
  """h = call(block, h) for each block in turn, in one scan if it may be.

  A scan reads the parameters of `stack_blocks`, or stacks them in the program.

  Args:
    network: that the blocks belong to; it scans its `scanned_blocks`.
    make: a block, by `name` or with `parent=None`.
    h: an array or a tree of arrays.
  """
  if names not in network.scanned_blocks or network.is_initializing():
    for name in names:
      h = call(make(name=name), h)
    return h
  params = network.variables["params"]
  stacked = params.get(stack_name(names))
  if stacked is None:
    stacked = _stack([params[name] for name in names])
  block = make(parent=None)
  step = lambda h, p: (call(block.bind({"params": p}), h), None)
  return jax.lax.scan(step, h, stacked)[0]


def stack_blocks(params: Any, runs: Sequence[Sequence[str]]) -> Any:
  """Parameters with those of equal blocks as one, with a new first axis.

  A step's program then holds one operation of the optimizer in place of one for
  each block, and copies nothing before its scans.

  Args:
    params: a dictionary; it stays as it is.
    runs: names of the blocks of each stack, as a network's `scanned_blocks`;
      those of a module inside are called module/block_0.
  """
  params = dict(params)
  for names in runs:
    module, _, first = names[0].partition("/")
    if first:
      inner = [name.partition("/")[2] for name in names]
      params[module] = stack_blocks(params[module], [inner])
    else:
      blocks = [params.pop(name) for name in names]
      params[stack_name(names)] = _stack(blocks)
  return params


def stack_scanned(network: Any, variables: Any) -> Any:
  """Variables of a network with those blocks stacked that it scans."""
  runs = getattr(network, "scanned_blocks", [])
  if not runs:
    return variables
  return {**variables, "params": stack_blocks(variables["params"], runs)}


def has_stacks(tree: Any) -> bool:
  """Whether there are stacks of blocks somewhere in a tree."""
  if not isinstance(tree, dict):
    return False
  return any(
    STACK.fullmatch(name) or has_stacks(part) for name, part in tree.items()
  )


def unstack_blocks(tree: Any) -> Any:
  """Parameters, wherever they lie in a tree, without stacks of blocks.

  The inverse of `stack_blocks`.

  Args:
    tree: dictionaries of dictionaries.
  """
  if not isinstance(tree, dict):
    return tree
  result = {}
  for name, part in tree.items():
    if (found := STACK.fullmatch(name)) is None:
      result[name] = unstack_blocks(part)
      continue
    first, last = int(found[2]), int(found[3])
    for i in range(last - first + 1):
      block = jax.tree.map(lambda leaf, i=i: leaf[i], part)
      result[f"{found[1]}_{first + i}"] = block
  return result


def _stack(blocks: Sequence[Any]) -> Any:
  """Of trees of arrays, or of shapes."""

  def stack(*leaves: Any) -> Any:
    if isinstance(leaves[0], jax.ShapeDtypeStruct):
      shape = len(leaves), *leaves[0].shape
      return jax.ShapeDtypeStruct(shape, leaves[0].dtype)
    return jnp.stack(leaves)

  return jax.tree.map(stack, *blocks)
