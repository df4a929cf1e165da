"""Continuous batching: images of one batch, each with a sampler of its own.

A sampler is a table of numbers, so every image of a batch can follow its own
rows: its own sampler, steps, guidance, seed and conditions. `Slots` holds the
images that are being denoised, and one compiled function advances each by one
row of its own table. An image enters a slot that is free at any time, and
leaves it after its last row; the others do not notice.
"""

import dataclasses
import functools
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from ldm_jax.diffusion import samplers
from ldm_jax.diffusion.samplers.x0_register import add_x0_register, keep_x0
from ldm_jax.latent_diffusion import LatentDiffusion, Parameters
from ldm_jax.nn.operators.choice import operators_of
from ldm_jax.runtime.devices.sharding import Sharding
from ldm_jax.runtime.program_cache import shared_by_value
from ldm_jax.runtime.stored_programs import StoredProgram
from ldm_jax.sampling.engine import SamplingEngine
from ldm_jax.sampling.generation import Generation
from ldm_jax.sampling.inpainting import paste
from ldm_jax.sampling.latent_codec import Decoding
from ldm_jax.sampling.sampling_config import SamplingConfig
from ldm_jax.sampling.slot_tables import PackedRows
from ldm_jax.sampling.steps.denoising_steps import StepInputs, step_denoiser


class _Arrays(NamedTuple):
  """What the compiled function reads of the slots; axis 0 is the slot.

  Attributes:
    state: registers of the sampler and x0, [s r 1 h w c].
    keys: of the noise, [s 1].
    step: conditions, guidance and what else a step takes.
  """

  state: Any
  keys: Any
  step: Any


@dataclasses.dataclass(frozen=True, eq=False)
class SlotJob:
  """One image that can enter a slot.

  Attributes:
    engine: of its model.
    config: of its request.
    arrays: of the image, without the axis of slots.
    table: the rows that it follows, on the host.
    steps: (row at which they end, conditions) in turn.
    params: of the networks.
    masked: where an image is inpainted, its pixels and mask.
  """

  engine: SamplingEngine
  config: SamplingConfig
  arrays: _Arrays
  table: PackedRows
  steps: tuple[tuple[int, StepInputs], ...]
  params: Parameters
  masked: Any

  @property
  def rows(self) -> int:
    """Rows of the table: evaluations of the network."""
    return len(self.table.index)

  @functools.cached_property
  def signature(self) -> Hashable:
    """Jobs of equal signatures are computed by one program, together."""
    leaves, form = jax.tree.flatten(self.arrays)
    shapes = tuple((leaf.shape, str(leaf.dtype)) for leaf in leaves)
    weights = tuple(map(id, jax.tree.leaves(self.params)))
    return id(self.engine), self.window, form, shapes, weights

  @property
  def window(self) -> int | None:
    """Side of windows in latents, or None."""
    return self.engine.window(self.config)

  def begin_decoding(self, latents: Float[Array, "1 h w c"]) -> Decoding:
    """Enqueues the decoder; `decoded` waits for it."""
    shards = self.engine.sharding.batch_shards
    rows = latents if shards == 1 else jnp.repeat(latents, shards, axis=0)
    known = self.masked
    if known is not None:
      known = tuple(np.repeat(part, shards, axis=0) for part in known)
    return self.engine.codec.begin_decoding(rows, self.config.tile, known)

  def decoded(self, decoding: Decoding) -> UInt8[np.ndarray, "H W 3"]:
    """The image; where it was inpainted, with the rest of it.

    Raises:
      NonFinite: it holds NaN or infinity.
    """
    images = self.engine.codec.decoded(decoding)[:1]
    if self.masked is not None:
      images = paste(images, *self.masked)
    return images[0]


def slot_job(generation: Generation, place: int) -> SlotJob:
  """Encodes the conditions of one image of a request and makes its noise.

  Args:
    place: of the image, from 0.

  Raises:
    ValueError: the request inverts an image, or a classifier guides it; these
      do not share a batch.
  """
  if generation.request.invert or generation.inputs.labels is not None:
    raise ValueError("inversion and classifier guidance do not share a batch")
  engine, config = generation.engine, generation.config
  group, row = generation.locate(place)
  rows = np.full(engine.sharding.batch_shards, row)
  params = generation.parameters(group.loras)
  begun = engine.begin(config, group, generation.inputs, rows, params)
  count = len(begun.table.index)
  steps = tuple(
    (max(1, round(end * count)), _first_image(step))
    for end, step in begun.schedule
  )
  state = add_x0_register(begun.start.state[:, :1])
  arrays = _Arrays(state, begun.start.keys[:1], steps[0][1])
  masked = None
  if begun.images.masks is not None:
    masked = begun.images.images[:1], begun.images.masks[:1]
  return SlotJob(
    engine,
    config,
    arrays,
    PackedRows.of(keep_x0(begun.table)),
    steps,
    begun.params,
    masked,
  )


def _first_image(step: StepInputs) -> StepInputs:
  """The inputs of the first image alone, numbers as arrays."""
  first = lambda tree: jax.tree.map(lambda x: x[:1], tree)
  scalars = lambda tree: jax.tree.map(jnp.float32, tree)
  image = step.image and (first(step.image[0]), scalars(step.image[1]))
  return StepInputs(
    positive=first(step.positive),
    negative=first(step.negative),
    guidance=scalars(step.guidance),
    threshold=scalars(step.threshold),
    known=first(step.known),
    others=first(step.others),
    weights=first(step.weights),
    image=image,
  )


class Slots:
  """The images of one signature that are denoised together.

  Attributes:
    engine: of the jobs' model.
    jobs: in each slot, or None where it is free.
    done: rows that the image of each slot has followed.
  """

  def __init__(self, example: SlotJob, count: int):
    """Compiles nothing yet.

    Args:
      example: a job of the signature.
      count: of slots; rounded up to a multiple of the devices.
    """
    self.engine = engine = example.engine
    shards = engine.sharding.batch_shards
    count = -(-count // shards) * shards
    self.jobs: list[SlotJob | None] = [None] * count
    self.done = [0] * count
    self._params, self._window = example.params, example.window
    self._advance, self._put, self._take = _programs(
      engine.model, engine.sharding
    )
    self._rows = PackedRows(
      np.zeros((count, example.table.numbers.shape[1]), np.float32),
      np.zeros(count, np.int32),
    )
    repeat = lambda x: jnp.repeat(jnp.asarray(x)[None], count, axis=0)
    arrays = jax.tree.map(repeat, example.arrays)
    place = functools.partial(jax.device_put, device=engine.sharding.batch)
    self._arrays = jax.tree.map(place, arrays)
    self._before = self._arrays.state

  def free(self) -> int | None:
    """A slot that is free, or None."""
    return next((i for i, job in enumerate(self.jobs) if job is None), None)

  def put(self, slot: int, job: SlotJob) -> None:
    """Places an image in a free slot."""
    self.jobs[slot], self.done[slot] = job, 0
    self._arrays = self._put(self._arrays, job.arrays, slot)
    self._before = self._arrays.state

  @property
  def occupied(self) -> int:
    """Slots that hold an image."""
    return sum(job is not None for job in self.jobs)

  def remove(self, slot: int) -> None:
    """Frees a slot."""
    self.jobs[slot] = None

  def advance(self) -> list[int]:
    """Every image follows its next row; returns the slots that finished.

    The computation is only enqueued; `latents` and `preview` wait for it.
    """
    rows = PackedRows(*map(np.zeros_like, self._rows))
    for slot, job in enumerate(self.jobs):
      if job is not None:
        done = self.done[slot]
        rows.numbers[slot] = job.table.numbers[done]
        rows.index[slot] = job.table.index[done]
    self._before = self._arrays.state
    state = self._advance(self._params, self._arrays, rows, window=self._window)
    self._arrays = self._arrays._replace(state=state)
    finished = []
    for slot, job in enumerate(self.jobs):
      if job is None:
        continue
      self.done[slot] += 1
      if self.done[slot] == job.rows:
        finished.append(slot)
      else:
        self._change_conditions(slot, job)
    return finished

  def latents(self, slot: int) -> Float[Array, "1 h w c"]:
    """x of a slot."""
    return self._take(self._arrays.state, slot, 0)

  def preview(self, slot: int) -> Float[Array, "1 h w c"]:
    """The last x0 of a slot."""
    return self._take(self._arrays.state, slot, -1)

  def wait(self) -> None:
    """Waits until all rows but the last that was enqueued are computed."""
    self._before.block_until_ready()

  def _change_conditions(self, slot: int, job: SlotJob) -> None:
    """Where a prompt changes from step to step, its next conditions."""
    ends = [end for end, _ in job.steps]
    if self.done[slot] in ends[:-1]:
      step = job.steps[ends.index(self.done[slot]) + 1][1]
      arrays = _Arrays(self._arrays.state[slot], job.arrays.keys, step)
      self._arrays = self._put(self._arrays, arrays, slot)


@shared_by_value
def _programs(
  model: LatentDiffusion, sharding: Sharding
) -> tuple[Callable, Callable, Callable]:
  """Jitted functions of slots: one row of each, to put, and to take."""

  def advance(
    params: Parameters, arrays: _Arrays, rows: Any, *, window: int | None
  ) -> Array:
    """The registers of every slot after a row of its own."""

    def one(state: Array, keys: Array, step: StepInputs, row: Any) -> Array:
      size = state.shape[2:4]
      denoise, mend = step_denoiser(model, None, params, step, size, window)
      return samplers.run_row(denoise, state, row.row(len(state)), keys, mend)

    return jax.vmap(one)(arrays.state, arrays.keys, arrays.step, rows)

  def put(arrays: _Arrays, job: _Arrays, slot: Any) -> _Arrays:
    return jax.tree.map(lambda x, y: x.at[slot].set(y), arrays, job)

  take = jax.jit(lambda state, slot, register: state[slot, register])
  jitted = jax.jit(advance, static_argnames="window")
  return (
    StoredProgram(jitted, ("slots", model, sharding), operators_of(model)),
    jax.jit(put, donate_argnums=0),
    take,
  )
