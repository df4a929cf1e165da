"""Behind plan: shapes of everything, one compilation, a table."""

import argparse
import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ldm_jax import config
from ldm_jax.commands.doors import usage
from ldm_jax.config import Experiment
from ldm_jax.loop import say
from ldm_jax.nn.conditioner import (
  ClassEmbedder,
  LayoutEmbedder,
  SizeEmbedder,
  TextEmbedder,
)
from ldm_jax.nn.prompts import ClipEmbedder
from ldm_jax.nn.spatial import (
  DepthMap,
  Embeddings,
  LowResolution,
  MapEmbedder,
  MaskedImage,
)
from ldm_jax.nodes import ConfigError, override
from ldm_jax.run import Run, open_first_stage
from ldm_jax.runtime import blueprint, flops, kernels
from ldm_jax.runtime.blueprint import GIB, Need
from ldm_jax.runtime.sharding import Sharding
from ldm_jax.tasks.autoencoding import Autoencoding

Shapes = dict[str, jax.ShapeDtypeStruct]


def plan(flags: argparse.Namespace, overrides: Mapping[str, str]) -> int:
  """Compiles, prints a table and a line of JSON; returns the exit code."""
  with usage():
    experiment = override(config.load(flags.config), overrides)
    experiment = _with_first_stage(experiment, flags.first_stage)
    devices = None
    if flags.topology is not None:
      devices = blueprint.devices_of(flags.topology, flags.slices)
    sharding = experiment.mesh.build(devices)
    batch = flags.batch or experiment.data.batch
    slices = getattr(experiment.task, "accumulate", 1)
    sharding.check_batch(batch, slices)
    shapes = shapes_of(experiment, batch)
  say("compiling the training step ...")
  found = _need(experiment.task, sharding, shapes)
  room = blueprint.room(flags.topology)
  told = _told(flags, experiment, sharding, batch, found)
  told["fits"] = found.refusal is None and (
    None if room is None else found.total <= room
  )
  if flags.largest and room is not None and found.refusal is None:
    say(f"compiling for a batch of {2 * batch} ...")
    twice = shapes_of(experiment, 2 * batch)
    double = _need(experiment.task, sharding, twice)
    unit = sharding.parts * slices
    told["largest"] = _largest(batch, unit, found, double, room)
  print(_table(told, found, room))
  print(json.dumps(told))
  return 0


def shapes_of(experiment: Experiment, batch: int) -> Shapes:
  """Shapes of a training batch, from the config alone.

  Raises:
    ConfigError: it does not tell the size of an image.
  """
  augment = experiment.data.augment
  if augment is None:
    raise ConfigError(
      "the config has no data.augment, so it does not say how large images are"
    )
  side, task = augment.size, experiment.task
  array = lambda dtype, *shape: jax.ShapeDtypeStruct((batch, *shape), dtype)
  found = {"image": array(jnp.uint8, side, side, 3)}
  model = getattr(task, "model", None)
  for part in model.conditioners if model else ():
    if isinstance(part, TextEmbedder | ClipEmbedder):
      tokenizer = experiment.data.tokenizer
      length = 77 if tokenizer is None else tokenizer.length
      found[part.reads] = array(jnp.int32, length)
    elif isinstance(part, ClassEmbedder):
      found[part.reads] = array(jnp.int32)
    elif isinstance(part, SizeEmbedder):
      count = 6 if part.ends_with == "target" else 5
      found[part.reads] = array(jnp.float32, count)
    elif isinstance(part, LayoutEmbedder):
      found[part.reads] = array(jnp.int32, part.encoder.length)
    elif isinstance(part, MapEmbedder):
      found[part.reads] = array(jnp.uint8, side, side)
    elif isinstance(part, MaskedImage):
      found[part.reads] = array(jnp.bool_, side, side)
    elif isinstance(part, DepthMap):
      found[part.reads] = array(jnp.float32, side, side)
    elif isinstance(part, LowResolution):
      small = side // model.first_stage.stride
      found[part.reads] = array(jnp.uint8, small, small, 3)
    elif isinstance(part, Embeddings):
      found[part.reads] = array(jnp.float32, 4, part.width)
  if hasattr(task, "reads"):
    found[task.reads] = array(jnp.int32)
  return found


def _with_first_stage(experiment: Experiment, named: str | None) -> Experiment:
  """The experiment on the first stage that is named."""
  if isinstance(experiment.task, Autoencoding):
    if named:
      raise ConfigError("stage one has no --first_stage; leave it out")
    return experiment
  if not named:
    raise ConfigError(
      "stage two needs --first_stage: a config of stage one, such as "
      "configs/ldm/kl_f8.py, or a run of one"
    )
  if Run.exists(named):
    task = open_first_stage(named).experiment.task
  else:
    task = config.load(named).task
  if not isinstance(task, Autoencoding):
    raise ConfigError(f"--first_stage {named!r} is no config of stage one")
  second = experiment.task.with_first_stage(task.autoencoder)
  return dataclasses.replace(experiment, task=second)


def _need(task: Any, sharding: Sharding, batch: Shapes) -> Need:
  """Of one training step, as the loop compiles it."""
  task = kernels.equipped(task, sharding)
  frozen = task.frozen_shapes(batch)
  key = jax.eval_shape(lambda: jax.random.key(0))
  state = jax.eval_shape(task.init, key, batch, frozen)
  places = sharding.state(state)

  def step(state: Any, frozen: Any, batch: Any, key: Any) -> Any:
    return task.step(state, frozen, batch, jax.random.fold_in(key, state.step))

  args = (
    _at(state, places),
    _at(frozen, sharding.state(frozen)),
    {
      name: _on(each, sharding.of(name, each.shape))
      for name, each in batch.items()
    },
    _on(key, sharding.replicated),
  )
  moved = (places, sharding.replicated)
  return blueprint.need(step, args, donate_argnums=0, out_shardings=moved)


def _on(shape: Any, sharding: Any) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)


def _at(shapes: Any, places: Any) -> Any:
  return jax.tree.map(_on, shapes, places)


def _told(
  flags: argparse.Namespace,
  experiment: Experiment,
  sharding: Sharding,
  batch: int,
  found: Need,
) -> dict[str, Any]:
  """The plan in numbers."""
  task, shapes = experiment.task, shapes_of(experiment, batch)
  frozen = task.frozen_shapes(shapes)
  key = jax.eval_shape(lambda: jax.random.key(0))
  state = jax.eval_shape(task.init, key, shapes, frozen)
  work = flops.count(task.step, state, frozen, shapes, key)
  count = sharding.mesh.size
  return {
    "config": flags.config,
    "topology": flags.topology or jax.devices()[0].device_kind,
    "slices": flags.slices,
    "devices": count,
    "mesh": dict(sharding.mesh.shape),
    "batch": batch,
    "images_per_device": batch / count,
    "flops_per_step": work,
    "flops_per_device": work / count,
    "arguments": found.arguments,
    "temporaries": found.temporaries,
    "total": found.total,
    "collectives": dict(found.collectives),
    "compile_seconds": round(found.seconds, 1),
    "refusal": found.refusal,
  }


def _largest(
  batch: int, unit: int, one: Need, two: Need, room: float
) -> int | None:
  """The batch that fills the room, if memory grows in a line; an estimate."""
  if two.refusal is not None or two.total <= one.total:
    return None
  each = (two.total - one.total) / batch
  most = batch + (room - one.total) / each
  return int(most // unit * unit)


def _table(told: Mapping[str, Any], found: Need, room: float | None) -> str:
  """For people."""
  gib = lambda size: f"{size / GIB:.2f} GiB"
  verdict = {True: "fits", False: "does not fit", None: "unknown room"}
  rows = [
    ("devices", f"{told['devices']} x {told['topology']}"),
    ("mesh", " x ".join(f"{k}={v}" for k, v in told["mesh"].items())),
    ("batch", f"{told['batch']} ({told['images_per_device']:g} per device)"),
    ("verdict", verdict[told["fits"]]),
  ]
  if found.refusal is not None:
    rows.append(("compiler", found.refusal))
  else:
    rows += [
      ("state, batch", gib(found.arguments)),
      ("temporaries", gib(found.temporaries)),
      ("in all", gib(found.total) + (f" of {gib(room)}" if room else "")),
    ]
    rows += [
      (kind, f"{count}, {gib(size)}")
      for kind, (count, size) in sorted(found.collectives.items())
    ]
  if told.get("largest"):
    rows.append(("largest batch", f"about {told['largest']}, by a line"))
  rows += [
    ("operations", f"{told['flops_per_step'] / 1e12:.3f} TFLOP a step"),
    ("compiled in", f"{told['compile_seconds']} s"),
  ]
  return "\n".join(f"{name:<16}{value}" for name, value in rows)
