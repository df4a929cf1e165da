"""A task's four functions as programs for a mesh."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax

from ldm_jax.runtime import skip_updates
from ldm_jax.runtime.devices import attention_kernels
from ldm_jax.runtime.devices.activation_sharding import constrain_activations
from ldm_jax.runtime.devices.sharding import Sharding
from ldm_jax.runtime.monitoring import flops

Batch = dict[str, jax.Array]

INIT, TRAIN, MEASURE, PREVIEW = range(4)  # what a key is for


@runtime_checkable
class Task(Protocol):
  """One meaning of "a training step"; the tasks happen to fit.

  `frozen` holds what is not trained: sharded, not donated, not in the
  checkpoint. Random numbers are drawn over the global batch.
  """

  def init(self, key: Any, batch: Any, frozen: Any) -> Any:
    """A fresh state; its `step` counts updates."""

  def step(self, state: Any, frozen: Any, batch: Any, key: Any) -> Any:
    """(state, metrics) after one update."""

  def measure(self, state: Any, frozen: Any, batch: Any, key: Any) -> Any:
    """Metrics of held-out examples."""

  def preview(self, state: Any, frozen: Any, batch: Any, key: Any) -> Any:
    """{name: images in [-1, 1]} of held-out examples."""


class CompiledTask:
  """A task's four functions, jitted for a mesh; the state is donated.

  A step's key is a function of (seed, step), so a restart repeats the run;
  measures and previews draw the same noise every time, to be compared.
  """

  def __init__(
    self, task: Task, sharding: Sharding, seed: int, frozen: Any, batch: Batch
  ):
    copied = sharding.replicated

    def purposes() -> list[jax.Array]:
      root = jax.random.key(seed)
      return [jax.random.fold_in(root, n) for n in range(PREVIEW + 1)]

    keys = jax.jit(purposes, out_shardings=copied)()
    self.shapes = jax.eval_shape(task.init, keys[INIT], batch, frozen)
    self.places = sharding.tree_shardings(self.shapes)

    # What a step does of a batch is counted without kernels, which cannot be
    # looked into.
    self.work = lambda batch: flops.count(
      task.step, self.shapes, frozen, batch, keys[0]
    )
    fast = attention_kernels.with_attention_kernels(task, sharding)

    def step(state: Any, frozen: Any, batch: Batch, key: jax.Array):
      key = jax.random.fold_in(key, state.step)
      state, metrics = fast.step(state, frozen, batch, key)
      return state, metrics | skip_updates.update_health(state)

    def bound(function: Callable, n: int, **options: Any) -> Callable:
      jitted, key = (
        jax.jit(constrain_activations(function, sharding), **options),
        keys[n],
      )
      return lambda state, batch: jitted(state, frozen, batch, key)

    # Runs once and draws every kernel by itself: optimised, its compilation
    # takes a CPU as long as the step's.
    is_cpu = jax.default_backend() == "cpu"
    swift = {"xla_backend_optimization_level": 0} if is_cpu else None
    placed = jax.jit(
      task.init, out_shardings=self.places, compiler_options=swift
    )
    self.init = lambda batch: placed(keys[INIT], batch, frozen)
    moved = (self.places, copied)
    self.step = bound(step, TRAIN, donate_argnums=0, out_shardings=moved)
    self.measure = bound(fast.measure, MEASURE, out_shardings=copied)
    self.preview = bound(fast.preview, PREVIEW, out_shardings=copied)

  def begun(self, state: Any, start: Any) -> Any:
    """The state with other parameters; its average is a copy of them."""
    places = (self.places.params, self.places.ema)
    twice = jax.jit(lambda start: (start, start), out_shardings=places)
    params, ema = twice(start)
    return state.replace(params=params, ema=ema)
