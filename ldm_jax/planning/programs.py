"""Programs to compile, with the shapes and shardings of their arguments."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from ldm_jax.concat_conditioning import prepare_inputs
from ldm_jax.config import Experiment
from ldm_jax.diffusion.samplers import SamplerConfig
from ldm_jax.errors import ConfigError
from ldm_jax.planning.prepared import Prepared, with_prepared
from ldm_jax.pretrained.stacked_parameters import unstack_parameters
from ldm_jax.runtime.devices import attention_kernels
from ldm_jax.runtime.devices.activation_sharding import constrain_activations
from ldm_jax.runtime.devices.sharding import Sharding
from ldm_jax.sampling.export.exported_program import generate_traced
from ldm_jax.sampling.sampling_config import SamplingConfig
from ldm_jax.training.batch_shapes import Shapes, shapes_of
from ldm_jax.training.checks import check_mesh
from ldm_jax.training.denoiser import DenoiserTask


class Program(NamedTuple):
  """A function to compile.

  Attributes:
    args: trees of `jax.ShapeDtypeStruct` with shardings.
    options: of `jax.jit`.
    parts: the arguments again, by what they are.
  """

  function: Callable
  args: tuple
  options: dict[str, Any]
  parts: dict[str, Any]


def build_program(
  experiment: Experiment,
  sharding: Sharding,
  sampler_steps: int | None,
  batch: int,
  use_kernels: bool = True,
  prepared: Prepared | None = None,
) -> Program:
  """A training step of `batch` images or, with `sampler_steps`, a sampler.

  Args:
    use_kernels: use the attention kernels of the devices; operations inside
      kernels cannot be counted.
    prepared: what a training step reads; see `with_prepared`.

  Raises:
    ConfigError: the experiment has nothing to sample from.
  """
  task, shapes = experiment.task, shapes_of(experiment, batch)
  if use_kernels:
    task = attention_kernels.with_attention_kernels(task, sharding)
  if not sampler_steps:
    check_mesh(task, shapes, sharding)
    return training_program(task, sharding, shapes, prepared)
  if not isinstance(task, DenoiserTask):
    raise ConfigError(
      f"sampler_steps needs the config of a denoiser, got "
      f"{type(task).__name__} (--sample)"
    )
  side = experiment.data.augment.size
  config = SamplingConfig(side, side, SamplerConfig(steps=sampler_steps))
  return sampling_program(task, sharding, shapes, config)


def training_program(
  task: Any,
  sharding: Sharding,
  batch: Shapes,
  prepared: Prepared | None = None,
) -> Program:
  """One training step, compiled as the trainer does."""
  frozen, state, key = _states(task, batch)
  if prepared is not None:
    batch, frozen = with_prepared(task, batch, frozen, prepared)
  state_shardings = sharding.tree_shardings(state)

  @functools.partial(constrain_activations, sharding=sharding)
  def step(state: Any, frozen: Any, batch: Any, key: Any) -> Any:
    return task.step(state, frozen, batch, jax.random.fold_in(key, state.step))

  args = (
    _place_tree(state, state_shardings),
    _place_tree(frozen, sharding.tree_shardings(frozen)),
    {
      name: _place(each, sharding.array_sharding(name, each.shape))
      for name, each in batch.items()
    },
    _place(key, sharding.replicated),
  )
  out_shardings = (state_shardings, sharding.replicated)
  options = {"donate_argnums": 0, "out_shardings": out_shardings}
  parts = {
    field.name: getattr(args[0], field.name)
    for field in dataclasses.fields(args[0])
  }
  parts |= {"frozen": args[1], "batch": args[2]}
  return Program(step, args, options, parts)


def sampling_program(
  task: DenoiserTask,
  sharding: Sharding,
  batch: Shapes,
  config: SamplingConfig,
) -> Program:
  """A whole guided sampler, noise to images."""
  frozen, state, _ = _states(task, batch)
  join = lambda state, frozen: task.parameters(state.trained, frozen)
  params = jax.eval_shape(
    lambda *parts: unstack_parameters(join(*parts)), state, frozen
  )
  prepare = lambda params, batch: prepare_inputs(
    task.model, params, batch, None
  )
  raw = jax.eval_shape(prepare, params, batch)
  (rows,) = {leaf.shape[0] for leaf in jax.tree.leaves(raw)} or {0}
  is_null = jax.ShapeDtypeStruct((rows,), bool)
  side = {
    "raw": raw,
    "is_null": {part.input_key: is_null for part in task.model.conditioners},
  }
  side = jax.tree.map(lambda leaf: _place(leaf, sharding.batch), side)
  number = lambda dtype, *shape: jax.ShapeDtypeStruct(
    shape, dtype, sharding=sharding.replicated
  )
  # Seed (two words), index of the first image, and guidance.
  numbers = number("uint32", 2), number("int32"), number("float32", 4)

  @functools.partial(constrain_activations, sharding=sharding)
  def generate(params: Any, sides: Any, numbers: Any) -> Any:
    return generate_traced(task.model, params, config, sides, *numbers)

  placed = _place_tree(params, sharding.tree_shardings(params))
  args = placed, (side, side), numbers
  options = {"out_shardings": sharding.batch}
  parts = {"params": args[0], "conditions": args[1]}
  return Program(generate, args, options, parts)


def _states(task: Any, batch: Shapes) -> tuple[Any, Any, Any]:
  """Shapes of what is frozen, of the training state, and of a key."""
  frozen = task.frozen_shapes(batch)
  key = jax.eval_shape(lambda: jax.random.key(0))
  return frozen, jax.eval_shape(task.init, key, batch, frozen), key


def _place(shape: Any, sharding: Any) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)


def _place_tree(shapes: Any, shardings: Any) -> Any:
  return jax.tree.map(_place, shapes, shardings)
