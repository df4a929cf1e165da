"""Updates that would spoil a run are passed over, and told of."""

import dataclasses
import functools
import json
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ldm_jax.errors import NonFinite
from ldm_jax.runtime.devices import processes
from ldm_jax.runtime.log import warn_on_os_error
from ldm_jax.runtime.monitoring.metric_writer import read_json_lines

logger = logging.getLogger(__name__)

WINDOW = 128  # gradient norms that a new one is compared with
NO_LEAF = -1
HEALTH = (
  "in_row",
  "culprit",
)  # of a step's health, to `NonFiniteMonitor` alone
Metrics = dict[str, Any]


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=["inner", "skipped", "in_row", "culprit", "norms", "seen"],
  meta_fields=["names", "patience"],
)
@dataclasses.dataclass
class SkipBadUpdatesState:
  """The state of an optimizer that passes over bad gradients.

  Attributes:
    inner: of the optimizer itself.
    skipped: updates that were passed over.
    in_row: how many of them came last, one after another.
    culprit: the first leaf of the last skipped gradient that was not finite,
      or NO_LEAF.
    norms: of the latest gradients, or None if spikes are let through.
    seen: how many norms there have been.
    names: of the leaves.
    patience: the most in a row.
  """

  inner: Any
  skipped: Any
  in_row: Any
  culprit: Any
  norms: Any
  seen: Any
  names: tuple[str, ...]
  patience: int


def skip_bad_updates(
  inner: optax.GradientTransformation,
  patience: int,
  spikes: float | None = None,
) -> optax.GradientTransformation:
  """`inner`, which never sees a gradient that is not finite.

  Nor one whose norm is a spike: more than `spikes` standard deviations above
  the mean of the last 128, a deviation being a hundredth of the mean or more.
  For such a gradient nothing changes, the rate's schedule included. A spike
  enters the 128 as the most it could have been, so that norms which rise for
  good are let through in the end, and what is not a number never enters.
  """

  def init(params: Any) -> SkipBadUpdatesState:
    """Nothing was passed over yet."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    name = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
    zero = jnp.zeros((), jnp.int32)
    return SkipBadUpdatesState(
      inner.init(params),
      skipped=zero,
      in_row=zero,
      culprit=jnp.full((), NO_LEAF, jnp.int32),
      norms=None if spikes is None else jnp.zeros((WINDOW,), jnp.float32),
      seen=zero,
      names=tuple(name(path) for path, _ in leaves),
      patience=patience,
    )

  def update(
    grads: Any, state: SkipBadUpdatesState, params: Any = None
  ) -> tuple[Any, SkipBadUpdatesState]:
    """Those of `inner`, or zeros, and the state after them."""
    is_good, judged = _judged(grads, state, spikes)
    updates, after = inner.update(grads, state.inner, params)
    choose = functools.partial(jnp.where, is_good)
    updates = jax.tree.map(lambda u: choose(u, jnp.zeros_like(u)), updates)
    return updates, dataclasses.replace(
      judged,
      inner=jax.tree.map(choose, after, state.inner),
      skipped=state.skipped + choose(0, 1),
      in_row=choose(0, state.in_row + 1),
    )

  return optax.GradientTransformation(init, update)


def _judged(
  grads: Any, state: SkipBadUpdatesState, spikes: float | None
) -> tuple[Any, SkipBadUpdatesState]:
  """Whether a gradient may be used, and the state with its norm."""
  square = lambda leaf: jnp.sum(jnp.square(leaf.astype(jnp.float32)))
  squares = jnp.stack([square(leaf) for leaf in jax.tree.leaves(grads)])
  norm, odd = jnp.sqrt(squares.sum()), ~jnp.isfinite(squares)
  is_good = is_finite = jnp.isfinite(norm)
  norms, seen, culprit = state.norms, state.seen, state.culprit
  if spikes is not None:
    most = _most(norms, seen, spikes)
    is_good = is_finite & (norm <= most)
    entered = norms.at[seen % WINDOW].set(jnp.minimum(norm, most))
    norms = jnp.where(is_finite, entered, norms)
    seen += is_finite.astype(jnp.int32)
  first = jnp.where(odd.any(), jnp.argmax(odd), NO_LEAF).astype(jnp.int32)
  culprit = jnp.where(is_good, culprit, first)
  return is_good, dataclasses.replace(
    state, norms=norms, seen=seen, culprit=culprit
  )


def _most(norms: Any, seen: Any, spikes: float) -> Any:
  """The largest norm that is no spike; any is while there are too few."""
  mean, deviation = norms.mean(), norms.std()
  most = mean + spikes * jnp.maximum(deviation, mean / 100)
  return jnp.where(seen >= WINDOW, most, jnp.inf)


def update_health(state: Any) -> Metrics:
  """What a state's optimizers say of themselves.

  "skipped", "in_row" and "culprit" of `SkipBadUpdatesState`: the sum, the
  largest, and an index into `leaf_names`. Empty
  if the state has no such optimizer.
  """
  nodes = _nodes(state)
  if not nodes:
    return {}
  culprit, before = jnp.full((), NO_LEAF, jnp.int32), 0
  for _, node in nodes:
    is_new = (node.in_row > 0) & (node.culprit >= 0) & (culprit < 0)
    culprit = jnp.where(is_new, before + node.culprit, culprit)
    before += len(node.names)
  return {
    "skipped": sum(node.skipped for _, node in nodes),
    "in_row": jnp.stack([node.in_row for _, node in nodes]).max(),
    "culprit": culprit,
  }


def leaf_names(state: Any) -> tuple[str, ...]:
  """All leaves that the optimizers of a state update, by "optimizer/path"."""
  return tuple(
    f"{path}/{name}" for path, node in _nodes(state) for name in node.names
  )


def _nodes(state: Any) -> list[tuple[str, SkipBadUpdatesState]]:
  is_node = lambda node: isinstance(node, SkipBadUpdatesState)
  leaves = jax.tree_util.tree_leaves_with_path(state, is_leaf=is_node)
  return [
    (jax.tree_util.keystr(path, simple=True, separator="/"), node)
    for path, node in leaves
    if is_node(node)
  ]


class NonFiniteMonitor:
  """Looks at the health of each step once the next one is under way.

  Args:
    folder: of the run; what is passed over is told in its skipped.jsonl.
    shapes: of the state.
    examples: from a step to the numbers of its examples.
  """

  def __init__(
    self,
    folder: str,
    shapes: Any,
    examples: Callable[[int], Sequence[int]],
  ):
    self._path = os.path.join(folder, "skipped.jsonl")
    self._names = leaf_names(shapes)
    self._patience = min(
      (node.patience for _, node in _nodes(shapes)), default=0
    )
    self._examples = examples
    self._waiting: tuple[int, Metrics] | None = None
    # A restart takes steps again, and a killed process may leave half a line.
    there = read_json_lines(self._path, repair=processes.is_first())
    self._written = {line["step"] for line in there}

  def stepped(self, step: int, metrics: Metrics) -> None:
    """Keeps a step's health, and looks at that of the one before.

    Raises:
      NonFinite: too many updates in a row were passed over.
    """
    self.flush()
    told = {name: metrics[name] for name in HEALTH if name in metrics}
    for value in told.values():
      value.copy_to_host_async()
    self._waiting = (step, told) if told else None

  def flush(self) -> None:
    """Looks at the last one."""
    if self._waiting is None:
      return
    step, told = self._waiting
    self._waiting = None
    in_row, culprit = (int(told[name]) for name in HEALTH)
    if in_row == 0:
      return
    reason = (
      f"the gradient at {self._names[culprit]} is not finite"
      if culprit != NO_LEAF
      else "the norm of the gradient is a spike"
    )
    examples = [int(number) for number in self._examples(step)]
    shown = ", ".join(map(str, examples[:8]))
    logger.info(
      f"step {step} is passed over: {reason}; its examples: {shown}"
      + (f" and {len(examples) - 8} more" if len(examples) > 8 else "")
    )
    if processes.is_first() and step not in self._written:
      line = {"step": step, "reason": reason, "examples": examples}
      with warn_on_os_error(), open(self._path, "a") as file:
        file.write(json.dumps(line) + "\n")
    if in_row >= self._patience:
      raise NonFinite(
        f"{in_row} updates in a row, up to step {step}, were passed over: "
        f"{reason}; the last checkpoint is from before; try a lower learning "
        "rate, or clip"
      )
