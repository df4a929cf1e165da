"""Behind plan: shapes of everything, one compilation, a table."""

import argparse
import dataclasses
import functools
import json
import logging
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from ldm_jax import config
from ldm_jax.cli.exit_codes import usage_errors
from ldm_jax.concat_conditioning import prepare_inputs
from ldm_jax.config import Experiment, override
from ldm_jax.diffusion.samplers import SamplerConfig
from ldm_jax.errors import ConfigError
from ldm_jax.runtime.devices import aot, attention_kernels, memory
from ldm_jax.runtime.devices.activation_sharding import constrain_activations
from ldm_jax.runtime.devices.aot import GIB, MemoryAnalysis
from ldm_jax.runtime.devices.sharding import Sharding
from ldm_jax.runtime.monitoring import flops
from ldm_jax.sampling.export.exported_program import generate_traced
from ldm_jax.sampling.sampling_config import SamplingConfig
from ldm_jax.training.batch_shapes import Shapes, shapes_of, with_first_stage
from ldm_jax.training.denoiser import DenoiserTask

logger = logging.getLogger(__name__)


class Program(NamedTuple):
  """What is compiled: a function, its arguments described, options of jit, and
  the arguments once more by what they are."""

  function: Callable
  args: tuple
  options: dict[str, Any]
  parts: dict[str, Any]


def plan(flags: argparse.Namespace, overrides: Mapping[str, str]) -> int:
  """Compiles, prints a table and a line of JSON; returns the exit code."""
  with usage_errors():
    experiment = override(config.load(flags.config), overrides)
    experiment = with_first_stage(experiment, flags.first_stage)
    devices = None
    if flags.topology is not None:
      devices = aot.topology_devices(flags.topology, flags.slices)
    sharding = experiment.mesh.build(devices)
    batch = flags.batch or experiment.data.batch
    slices = 1 if flags.sample else getattr(experiment.task, "accumulate", 1)
    sharding.check_batch(batch, slices)
    make = functools.partial(_program, flags, experiment, sharding)
    plain = make(batch, is_plain=True)
    work = flops.count(plain.function, *plain.args)
  what = f"a sampler of {flags.sample} steps" if flags.sample else "the step"
  logger.info(f"compiling {what} ...")
  program = make(batch)
  found = _need(program)
  there = None if flags.topology else memory.available_bytes()
  room = aot.usable_bytes(flags.topology) if there is None else float(there)
  told = _told(flags, sharding, batch, work, found)
  told["parts"] = _sizes(program)
  told["fits"] = found.refusal is None and (
    None if room is None else found.total <= room
  )
  if flags.largest:
    unit = sharding.batch_shards * slices
    told |= _largest(lambda n: _need(make(n)), batch, unit, found, room)
  print(_table(told, found, room))
  print(json.dumps(told))
  return 0


def _program(
  flags: argparse.Namespace,
  experiment: Experiment,
  sharding: Sharding,
  batch: int,
  is_plain: bool = False,
) -> Program:
  """A step of training, or a sampler.

  Args:
    is_plain: without kernels, which no operations can be counted in.

  Raises:
    ConfigError: there is nothing to sample.
  """
  task, shapes = experiment.task, shapes_of(experiment, batch)
  if not is_plain:
    task = attention_kernels.with_attention_kernels(task, sharding)
  if not flags.sample:
    return _training(task, sharding, shapes)
  if not isinstance(task, DenoiserTask):
    raise ConfigError("--sample needs a config of stage two")
  side = experiment.data.augment.size
  sampler_config = SamplerConfig(steps=flags.sample)
  return _sampling(
    task, sharding, shapes, SamplingConfig(side, side, sampler_config)
  )


def _need(program: Program) -> MemoryAnalysis:
  """Of what is held through a step, whether the step reads it or not."""
  held = sum(_sizes(program).values())
  found = aot.memory_analysis(program.function, program.args, **program.options)
  return found._replace(arguments=max(held, found.arguments))


def _sizes(program: Program) -> dict[str, int]:
  """Bytes of a device, by what they are."""
  return {
    name: memory.bytes_per_device(
      tree, jax.tree.map(lambda x: x.sharding, tree)
    )
    for name, tree in program.parts.items()
  }


def _training(task: Any, sharding: Sharding, batch: Shapes) -> Program:
  """One step, as the loop compiles it."""
  frozen, state, key = _states(task, batch)
  places = sharding.tree_shardings(state)

  @functools.partial(constrain_activations, sharding=sharding)
  def step(state: Any, frozen: Any, batch: Any, key: Any) -> Any:
    return task.step(state, frozen, batch, jax.random.fold_in(key, state.step))

  args = (
    _at(state, places),
    _at(frozen, sharding.tree_shardings(frozen)),
    {
      name: _on(each, sharding.array_sharding(name, each.shape))
      for name, each in batch.items()
    },
    _on(key, sharding.replicated),
  )
  moved = (places, sharding.replicated)
  options = {"donate_argnums": 0, "out_shardings": moved}
  held = {
    field.name: getattr(args[0], field.name)
    for field in dataclasses.fields(args[0])
  }
  parts = held | {"frozen": args[1], "batch": args[2]}
  return Program(step, args, options, parts)


def _sampling(
  task: DenoiserTask,
  sharding: Sharding,
  batch: Shapes,
  settings: SamplingConfig,
) -> Program:
  """Noise to images, guided, in one piece."""
  frozen, state, _ = _states(task, batch)
  join = lambda state, frozen: task.parameters(state.ema, frozen)
  params = jax.eval_shape(join, state, frozen)
  see = lambda params, batch: prepare_inputs(task.model, params, batch, None)
  raw = jax.eval_shape(see, params, batch)
  (rows,) = {leaf.shape[0] for leaf in jax.tree.leaves(raw)} or {0}
  mute = jax.ShapeDtypeStruct((rows,), bool)
  side = {
    "raw": raw,
    "is_null": {part.input_key: mute for part in task.model.conditioners},
  }
  side = jax.tree.map(lambda leaf: _on(leaf, sharding.batch), side)
  number = lambda dtype, *shape: jax.ShapeDtypeStruct(
    shape, dtype, sharding=sharding.replicated
  )
  told = number("uint32"), number("int32"), number("float32", 4)

  @functools.partial(constrain_activations, sharding=sharding)
  def draw(params: Any, sides: Any, told: Any) -> Any:
    return generate_traced(task.model, params, settings, sides, *told)

  args = (_at(params, sharding.tree_shardings(params)), (side, side), told)
  options = {"out_shardings": sharding.batch}
  parts = {"params": args[0], "asked": args[1]}
  return Program(draw, args, options, parts)


def _states(task: Any, batch: Shapes) -> tuple[Any, Any, Any]:
  """What is frozen, what is learned, and a key."""
  frozen = task.frozen_shapes(batch)
  key = jax.eval_shape(lambda: jax.random.key(0))
  return frozen, jax.eval_shape(task.init, key, batch, frozen), key


def _on(shape: Any, sharding: Any) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)


def _at(shapes: Any, places: Any) -> Any:
  return jax.tree.map(_on, shapes, places)


def _told(
  flags: argparse.Namespace,
  sharding: Sharding,
  batch: int,
  work: int,
  found: MemoryAnalysis,
) -> dict[str, Any]:
  """The plan in numbers."""
  count = sharding.mesh.size
  return {
    "config": flags.config,
    "samples_in": flags.sample,
    "topology": flags.topology or jax.devices()[0].device_kind,
    "slices": flags.slices,
    "devices": count,
    "mesh": dict(sharding.mesh.shape),
    "batch": batch,
    "images_per_device": batch / count,
    "flops": work,
    "flops_per_device": work / count,
    "arguments": found.arguments,
    "temporaries": found.temporaries,
    "total": found.total,
    "compiled_flops": found.flops,
    "collectives": found.collectives and dict(found.collectives),
    "compile_seconds": round(found.seconds, 1),
    "refusal": found.refusal,
  }


def _largest(
  need: Callable[[int], MemoryAnalysis],
  batch: int,
  unit: int,
  found: MemoryAnalysis,
  room: float | None,
) -> dict[str, Any]:
  """The batch that fills the room, if memory grows in a line; an estimate.

  The line goes through this batch and twice or half of it, whichever XLA takes.
  """
  if room is None:
    return {"largest": None, "largest_by": "unknown room"}
  points = [] if found.refusal else [(batch, found.total)]
  for other in (2 * batch, batch // 2, batch // 4):
    if len(points) == 2 or other % unit or not other:
      continue
    logger.info(f"compiling for a batch of {other} ...")
    made = need(other)
    points += [] if made.refusal else [(other, made.total)]
  if len(points) < 2:
    return {"largest": None, "largest_by": "no two batches compile"}
  (one, least), (two, most) = sorted(points)
  if most <= least:
    return {"largest": None, "largest_by": "memory does not grow"}
  whole = one + (room - least) * (two - one) / (most - least)
  return {
    "largest": max(0, int(whole // unit * unit)),
    "largest_by": f"a line through {one} and {two}",
  }


def _table(
  told: Mapping[str, Any], found: MemoryAnalysis, room: float | None
) -> str:
  """For people."""
  gib = lambda size: f"{size / GIB:.2f} GiB"
  verdict = {True: "fits", False: "does not fit", None: "unknown room"}
  what = "a step of training"
  if told["samples_in"]:
    what = f"samples in {told['samples_in']} steps"
  rows = [
    ("program", what),
    ("devices", f"{told['devices']} x {told['topology']}"),
    ("mesh", " x ".join(f"{k}={v}" for k, v in told["mesh"].items())),
    ("batch", f"{told['batch']} ({told['images_per_device']:g} per device)"),
    ("verdict", verdict[told["fits"]]),
  ]
  if found.refusal is not None:
    rows.append(("compiler", found.refusal))
  else:
    shown = {k: v for k, v in told["parts"].items() if v >= GIB / 200}
    rows += [(name, gib(size)) for name, size in shown.items()]
    rows += [
      ("temporaries", gib(found.temporaries)),
      ("in all", gib(found.total) + (f" of {gib(room)}" if room else "")),
    ]
    if found.collectives is None:
      rows.append(("collectives", "not shown by the compiler"))
    rows += [
      (f"{kind} ", f"{count}, {gib(size)}")
      for kind, (count, size) in sorted((found.collectives or {}).items())
    ]
  if "largest" in told:
    known = told["largest"] is not None
    about = f"about {told['largest']}" if known else "not known"
    rows.append(("largest batch", f"{about}: {told['largest_by']}"))
  rows += [
    ("operations", f"{told['flops'] / 1e12:.3f} TFLOP"),
    ("compiled in", f"{told['compile_seconds']} s"),
  ]
  return "\n".join(f"{name:<16}{value}" for name, value in rows)
