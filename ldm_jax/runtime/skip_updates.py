"""Skips updates with bad gradients; compare optax.apply_if_finite."""

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
from ldm_jax.files.atomic_writes import open_append
from ldm_jax.runtime.devices import processes
from ldm_jax.runtime.log import warn_on_os_error
from ldm_jax.runtime.monitoring.metric_writer import read_json_lines

logger = logging.getLogger(__name__)

WINDOW = 128  # gradient norms that a new one is compared with
NO_LEAF = -1
# Metrics of a step that only `NonFiniteMonitor` reads.
HEALTH = ("in_row", "culprit")
Metrics = dict[str, Any]


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=["inner", "skipped", "in_row", "culprit", "norms", "seen"],
  meta_fields=["names", "patience"],
)
@dataclasses.dataclass
class SkipBadUpdatesState:
  """The state of an optimizer that skips bad gradients.

  Attributes:
    inner: of the optimizer itself.
    skipped: number of skipped updates.
    in_row: how many consecutive updates up to the last were skipped.
    culprit: index of the first leaf that was not finite in the last skipped
      gradient, or NO_LEAF.
    norms: of the latest gradients, or None if spikes are not skipped.
    seen: number of norms so far.
    names: of the leaves.
    patience: how many in a row end the run.
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
  """`inner`, with updates skipped whose gradient is not finite or a spike.

  A spike is a norm more than `spikes` standard deviations above the mean of the
  last 128 norms; the deviation counts as at least 1% of the mean. A skipped
  update changes nothing, nor does the schedule of the learning rate advance. A
  spike enters the 128 norms as the largest value that would have been accepted,
  so that norms which stay high are accepted in the end. Values that are not
  finite do not enter.

  Args:
    patience: how many skipped updates in a row end the run; see
      `NonFiniteMonitor`.
    spikes: standard deviations; None skips no spikes.
  """

  def init(params: Any) -> SkipBadUpdatesState:
    """The state before the first update."""
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
    """The updates of `inner`, or zeros, and the next state."""
    is_good, state_after = _check_gradient(grads, state, spikes)
    updates, after = inner.update(grads, state.inner, params)
    choose = functools.partial(jnp.where, is_good)
    updates = jax.tree.map(lambda u: choose(u, jnp.zeros_like(u)), updates)
    return updates, dataclasses.replace(
      state_after,
      inner=jax.tree.map(choose, after, state.inner),
      skipped=state.skipped + choose(0, 1),
      in_row=choose(0, state.in_row + 1),
    )

  return optax.GradientTransformation(init, update)


def _check_gradient(
  grads: Any, state: SkipBadUpdatesState, spikes: float | None
) -> tuple[Any, SkipBadUpdatesState]:
  """Whether a gradient is used, and the state with its norm."""
  square = lambda leaf: jnp.sum(jnp.square(leaf.astype(jnp.float32)))
  squares = jnp.stack([square(leaf) for leaf in jax.tree.leaves(grads)])
  norm, is_bad = jnp.sqrt(squares.sum()), ~jnp.isfinite(squares)
  is_good = is_finite = jnp.isfinite(norm)
  norms, seen, culprit = state.norms, state.seen, state.culprit
  if spikes is not None:
    limit = _norm_limit(norms, seen, spikes)
    is_good = is_finite & (norm <= limit)
    entered = norms.at[seen % WINDOW].set(jnp.minimum(norm, limit))
    norms = jnp.where(is_finite, entered, norms)
    seen += is_finite.astype(jnp.int32)
  first = jnp.where(is_bad.any(), jnp.argmax(is_bad), NO_LEAF).astype(jnp.int32)
  culprit = jnp.where(is_good, culprit, first)
  return is_good, dataclasses.replace(
    state, norms=norms, seen=seen, culprit=culprit
  )


def _norm_limit(norms: Any, seen: Any, spikes: float) -> Any:
  """The largest norm that is not a spike; infinity for the first 128 norms."""
  mean, deviation = norms.mean(), norms.std()
  limit = mean + spikes * jnp.maximum(deviation, mean / 100)
  return jnp.where(seen >= WINDOW, limit, jnp.inf)


def update_health(state: Any) -> Metrics:
  """{"skipped", "in_row", "culprit"} over all optimizers of a training state.

  Of `SkipBadUpdatesState`: the sum, the largest, and an index into
  `leaf_names`. {} if the state has no such optimizer.
  """
  nodes = _nodes(state)
  if not nodes:
    return {}
  culprit, offset = jnp.full((), NO_LEAF, jnp.int32), 0
  for _, node in nodes:
    is_new = (node.in_row > 0) & (node.culprit >= 0) & (culprit < 0)
    culprit = jnp.where(is_new, offset + node.culprit, culprit)
    offset += len(node.names)
  return {
    "skipped": sum(node.skipped for _, node in nodes),
    "in_row": jnp.stack([node.in_row for _, node in nodes]).max(),
    "culprit": culprit,
  }


def leaf_names(state: Any) -> tuple[str, ...]:
  """ "optimizer/path" of all leaves that a state's optimizers update."""
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
  """Reports skipped updates, one step behind, and ends the run if need be.

  Args:
    folder: of the run; skipped.jsonl is written there.
    shapes: of the training state.
    examples: from a step to the dataset indices of its examples.
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
    self._pending: tuple[int, Metrics] | None = None
    # A resumed run repeats steps; a killed process may leave a partial line.
    repair = processes.is_first()
    lines = read_json_lines(self._path, ("step",), repair)
    steps = (line["step"] for line in lines)
    self._written = {step for step in steps if isinstance(step, int)}

  def stepped(self, step: int, metrics: Metrics) -> None:
    """Keeps a step's metrics and checks those of the step before.

    Raises:
      NonFinite: too many updates in a row were skipped.
    """
    self.flush()
    health = {name: metrics[name] for name in HEALTH if name in metrics}
    for value in health.values():
      value.copy_to_host_async()
    self._pending = (step, health) if health else None

  def flush(self) -> None:
    """Checks the last step; raises as `stepped` does."""
    if self._pending is None:
      return
    step, health = self._pending
    self._pending = None
    in_row, culprit = (int(health[name]) for name in HEALTH)
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
      f"step {step} is skipped: {reason}; its examples: {shown}"
      + (f" and {len(examples) - 8} more" if len(examples) > 8 else "")
    )
    if processes.is_first() and step not in self._written:
      line = {"step": step, "reason": reason, "examples": examples}
      with warn_on_os_error(), open_append(self._path) as file:
        file.write((json.dumps(line) + "\n").encode())
    if in_row >= self._patience:
      raise NonFinite(
        f"{in_row} updates in a row, up to step {step}, were skipped: "
        f"{reason}; the last checkpoint is from before; try a lower learning "
        "rate or clip"
      )
