"""A task's functions, compiled for a mesh."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax

from ldm_jax.nn.operators.choice import operators, operators_of
from ldm_jax.runtime import skip_updates
from ldm_jax.runtime.devices import attention_kernels
from ldm_jax.runtime.devices.activation_sharding import constrain_activations
from ldm_jax.runtime.devices.sharding import Sharding
from ldm_jax.runtime.monitoring import flops
from ldm_jax.runtime.program_cache import (
  Structure,
  initialization,
  shared_by_value,
)
from ldm_jax.runtime.stored_programs import StoredProgram

Batch = dict[str, jax.Array]

INIT, TRAIN, MEASURE, PREVIEW = range(4)  # purposes of random keys


@runtime_checkable
class Task(Protocol):
  """The protocol of a training task: any frozen dataclass with these methods.

  `frozen` is a tree of arrays that are not trained: sharded, not donated, not
  in the checkpoint. Random numbers are drawn over the global batch. A batch is
  a dictionary of arrays [b ...].

  As an `Experiment.task` it also needs `frozen_shapes(batch)`: the shapes of
  `frozen` for batches like this one, of arrays or of their shapes.

  Optional members: `with_start(state, start)`, the initial state with other
  parameters, where `start` is not all of `params`; `with_first_stage(stage)`
  and `first_stage` for a task on the latents of a first stage (its `frozen` is
  a `denoiser.Frozen`); `model` and `parameters(trained, frozen)` for a run that
  can be sampled; `load_frozen(batch)` to read other frozen arrays when a run
  starts.
  """

  def init(self, key: Any, batch: Any, frozen: Any) -> Any:
    """The initial state: a tree with `step` (0), `params` and `opt`, and
    `ema`, the parameters to use, or None."""

  def step(self, state: Any, frozen: Any, batch: Any, key: Any) -> Any:
    """(state, metrics) after one update, with `step` one higher."""

  def measure(self, state: Any, frozen: Any, batch: Any, key: Any) -> Any:
    """{name: scalar} of held-out examples."""

  def preview(self, state: Any, frozen: Any, batch: Any, key: Any) -> Any:
    """{name: images [b h w 3] in [-1, 1]} of held-out examples."""


class CompiledTask:
  """A task's functions, jitted for a mesh; the state is donated.

  `init_from(batch, start)` is the initial state that begins with the parameters
  `start`, which are donated; what they replace is not initialised.

  A step's key is a function of (seed, step), so a restart repeats the run;
  measures and previews use the same random numbers every time, so that they
  can be compared.
  """

  def __init__(
    self, task: Task, sharding: Sharding, seed: int, frozen: Any, batch: Batch
  ):
    keys = _keys(sharding, seed)
    programs = _programs(
      task, sharding, Structure.of(frozen), Structure.of(batch)
    )
    self.shapes, self.shardings = programs.shapes, programs.shardings

    def work(batch: Batch) -> int:
      """FLOPs without fused kernels, which are opaque, and Winograd's."""
      with operators("xla"):
        return flops.count(task.step, self.shapes, frozen, batch, keys[0])

    self.work = work

    def bound(jitted: Callable, n: int) -> Callable:
      return lambda state, batch: jitted(state, frozen, batch, keys[n])

    self.init = lambda batch: programs.init(keys[INIT], batch, frozen)
    self.init_from = lambda batch, start: programs.init_from(
      keys[INIT], batch, frozen, start
    )
    self.step = bound(programs.step, TRAIN)
    self.measure = bound(programs.measure, MEASURE)
    self.preview = bound(programs.preview, PREVIEW)


class _Programs(NamedTuple):
  """A task's jitted functions; the state's shapes and shardings."""

  shapes: Any
  shardings: Any
  init: Callable
  init_from: Callable
  step: Callable
  measure: Callable
  preview: Callable


@shared_by_value
def _programs(
  task: Task, sharding: Sharding, frozen: Structure, batch: Structure
) -> _Programs:
  shapes, init = initialization(task, batch, frozen)
  shardings = sharding.tree_shardings(shapes)
  fast = attention_kernels.with_attention_kernels(task, sharding)
  copied = sharding.replicated

  def step(state: Any, frozen: Any, batch: Batch, key: jax.Array):
    key = jax.random.fold_in(key, state.step)
    state, metrics = fast.step(state, frozen, batch, key)
    return state, metrics | skip_updates.update_health(state)

  parts = task, sharding, frozen, batch

  def jitted(name: str, function: Callable, **options: Any) -> Callable:
    jitted = jax.jit(constrain_activations(function, sharding), **options)
    return StoredProgram(jitted, (name, *parts), operators_of(*parts))

  place = getattr(task, "with_start", _with_params)

  def init_from(key: jax.Array, batch: Batch, frozen: Any, start: Any) -> Any:
    return place(init(key, batch, frozen), start)

  def once(name: str, function: Callable, **options: Any) -> Callable:
    options |= {"compiler_options": compiled_for_one_call()}
    return StoredProgram(
      jax.jit(function, out_shardings=shardings, **options),
      (name, *parts, options),
      operators_of(*parts),
    )

  return _Programs(
    shapes,
    shardings,
    once("init", init),
    once("init_from", init_from, donate_argnums=3),
    jitted("step", step, donate_argnums=0, out_shardings=(shardings, copied)),
    jitted("measure", fast.measure, out_shardings=copied),
    jitted("preview", fast.preview, out_shardings=copied),
  )


def compiled_for_one_call() -> dict[str, Any] | None:
  """Options of `jax.jit` for programs that run once, such as initialisations.

  They initialise every kernel by itself: optimised, their compilation takes a
  CPU as long as that of a step.
  """
  is_cpu = jax.default_backend() == "cpu"
  return {"xla_backend_optimization_level": 0} if is_cpu else None


def _with_params(state: Any, start: Any) -> Any:
  """The state with other parameters; its average, if any, is a copy of them."""
  return state.replace(params=start, ema=None if state.ema is None else start)


def _keys(sharding: Sharding, seed: int) -> list[jax.Array]:
  """One key for each purpose, on every device."""

  def purposes() -> list[jax.Array]:
    root = jax.random.key(seed)
    return [jax.random.fold_in(root, n) for n in range(PREVIEW + 1)]

  return jax.jit(purposes, out_shardings=sharding.replicated)()
