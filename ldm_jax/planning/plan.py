"""Plans training or sampling: whether it fits, and the cost of a step."""

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Callable

import jax

from ldm_jax import config
from ldm_jax.config import Experiment
from ldm_jax.errors import config_errors
from ldm_jax.fields.arguments import checked
from ldm_jax.nn.operators.choice import operators
from ldm_jax.planning.memory_needs import (
  largest_batch,
  memory_needs,
  part_sizes,
)
from ldm_jax.planning.programs import Program, build_program
from ldm_jax.planning.request import LargestBatch, PlanRequest, PlanResult
from ldm_jax.runtime.devices import aot, memory
from ldm_jax.runtime.devices.aot import MemoryAnalysis
from ldm_jax.runtime.devices.partitioned import partitioned_program
from ldm_jax.runtime.devices.sharding import Sharding
from ldm_jax.runtime.monitoring import flops
from ldm_jax.training.batch_shapes import with_first_stage

logger = logging.getLogger(__name__)


@checked
def plan(request: PlanRequest) -> PlanResult:
  """Compiles a step for the devices; computes nothing and reads no data.

  Raises:
    ConfigError: the request cannot be fulfilled.
  """
  # Those of the CPU are not in a program for another platform.
  is_cpu = request.topology is None
  with contextlib.nullcontext() if is_cpu else operators("xla"):
    return _plan(request)


def _plan(request: PlanRequest) -> PlanResult:
  """`plan` with the operators of this context."""
  steps = request.sampler_steps
  with config_errors():
    experiment = _experiment(request)
    devices = None
    if request.topology is not None:
      devices = aot.topology_devices(request.topology, request.slices)
    sharding = experiment.mesh.build(devices)
    batch = request.batch or experiment.data.batch
    accumulated = 1 if steps else getattr(experiment.task, "accumulate", 1)
    sharding.check_batch(batch, accumulated)
    build = functools.partial(
      build_program, experiment, sharding, steps, prepared=request.prepared
    )
    plain = build(batch, use_kernels=False)
    with operators("xla"):
      operations = flops.count(plain.function, *plain.args)
  what = f"a sampler of {steps} steps" if steps else "the training step"
  logger.info(f"compiling {what} ...")
  program = build(batch)
  needs, limit = memory_needs(program), _memory_limit(request)
  source = None if needs.refusal else "compiled"
  if needs.collectives is None and needs.refusal is None:
    found = _partitioned(plain)
    needs = needs._replace(collectives=found)
    source = None if found is None else "partitioned"
  largest = None
  if request.largest:
    largest = _largest(
      build, batch, sharding.batch_shards * accumulated, needs, limit
    )
  result = _result(
    request, sharding, batch, operations, (program, needs), limit, largest
  )
  return dataclasses.replace(result, collectives_of=source)


def _partitioned(plain: Program) -> dict[str, tuple[int, int]] | None:
  """Collectives of a program without kernels, divided for CPU devices."""
  logger.info(
    "the compiler cannot print its program; partitioning it for CPU devices, "
    "to count the collectives ..."
  )
  shardings = plain.options["out_shardings"]
  try:
    text = partitioned_program(plain.function, plain.args, shardings)
  except RuntimeError as error:
    logger.warning(f"the collectives are not counted: {error}")
    return None
  return aot.count_collectives(text)


def _experiment(request: PlanRequest) -> Experiment:
  """The experiment with its overrides and first stage."""
  experiment = config.resolve(request.config, request.overrides)
  return with_first_stage(experiment, request.first_stage)


def _memory_limit(request: PlanRequest) -> float | None:
  """Bytes of a device that the program may use, where known."""
  available = None if request.topology else memory.available_bytes()
  if available is None:
    return aot.usable_bytes(request.topology)
  return float(available)


def _largest(
  build: Callable[[int], Program],
  batch: int,
  unit: int,
  needs: MemoryAnalysis,
  limit: float | None,
) -> LargestBatch:
  need = lambda other: memory_needs(build(other))
  return largest_batch(need, batch, unit, needs, limit)


def _result(
  request: PlanRequest,
  sharding: Sharding,
  batch: int,
  operations: int,
  compiled: tuple[Program, MemoryAnalysis],
  limit: float | None,
  largest: LargestBatch | None,
) -> PlanResult:
  """The plan in numbers."""
  program, needs = compiled
  devices, source = sharding.mesh.size, request.config
  fits = None if limit is None else needs.total <= limit
  name = source if isinstance(source, str) else type(source.task).__name__
  return PlanResult(
    config=name,
    sampler_steps=request.sampler_steps,
    topology=request.topology or jax.devices()[0].device_kind,
    slices=request.slices,
    devices=devices,
    mesh=dict(sharding.mesh.shape),
    batch=batch,
    images_per_device=batch / devices,
    flops=operations,
    flops_per_device=operations / devices,
    arguments=needs.arguments,
    temporaries=needs.temporaries,
    total=needs.total,
    compiled_flops=needs.flops,
    collectives=needs.collectives and dict(needs.collectives),
    compile_seconds=round(needs.seconds, 1),
    refusal=needs.refusal,
    parts=part_sizes(program),
    fits=needs.refusal is None and fits,
    memory_limit=limit,
    largest_batch=largest,
  )
