"""The array level of sampling: conditioning and noise to images."""

import contextlib
import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from ldm_jax.diffusion import samplers
from ldm_jax.diffusion.guidance import ClassifierFreeGuidance
from ldm_jax.diffusion.samplers.x0_register import add_x0_register, keep_x0
from ldm_jax.latent_diffusion import LatentDiffusion, Parameters
from ldm_jax.nn.encoder_unet import EncoderUNet
from ldm_jax.runtime.devices import attention_kernels, processes
from ldm_jax.runtime.devices.sharding import Sharding
from ldm_jax.sampling.initial_latents import InitialLatents, InitialState
from ldm_jax.sampling.inpainting import paste
from ldm_jax.sampling.latent_codec import LatentCodec
from ldm_jax.sampling.sampling_config import (
  ConditionGroup,
  Conditioning,
  GenerationInputs,
  ImageInputs,
  PromptVariant,
  SamplingConfig,
)
from ldm_jax.sampling.steps.begun_batch import BegunBatch
from ldm_jax.sampling.steps.denoising_steps import (
  Batch,
  StepInputs,
  programs,
  step_inputs,
)
from ldm_jax.sampling.steps.pieces import Progress, report, scheduled_pieces

logger = logging.getLogger(__name__)


class SamplingEngine:
  """A model with its parameters on the devices, ready to sample.

  Attributes:
    model: with the attention kernels of its devices.
    sharding: of its arrays.
    codec: its first stage, images to latents and back.
  """

  def __init__(
    self,
    model: LatentDiffusion,
    params: Parameters,
    sharding: Sharding,
    classifier: tuple[EncoderUNet, Any] | None = None,
  ):
    """Compiles nothing yet. Attention takes the fastest kernels there are.

    Args:
      classifier: with its parameters; it guides inputs that have labels.
    """
    model = attention_kernels.with_attention_kernels(model, sharding)
    self.model, self.sharding, self._params = model, sharding, params
    self._compiled: set[tuple] = set()
    module, self._classifier_params = classifier or (None, None)
    self._classes = 0 if module is None else module.classes
    self._condition, self._chunk = programs(model, module, sharding)
    self._step_inputs = functools.partial(
      step_inputs, model, sharding, self._condition
    )
    self.codec = LatentCodec(model, params, sharding)
    self._initial_latents = InitialLatents(model, self.codec, sharding)

  def set_parameters(self, params: Parameters) -> None:
    """Uses other parameters of the same shapes from now on; compiles
    nothing."""
    self._params = params
    self.codec.set_parameters(params)

  def generate(
    self,
    config: SamplingConfig,
    positive: Conditioning,
    negative: Conditioning,
    inputs: GenerationInputs,
    progress: Progress | None = None,
  ) -> Iterator[np.ndarray]:
    """Yields images, uint8 [b h w 3], or latents in order, a batch at a time.

    An image's noise is a function of (config.seed, its index) alone, so it
    does not depend on `batch` or on the devices. Batches are rounded up to a
    multiple of the devices, over which they are spread.

    Args:
      progress: without it the host waits for nothing but finished batches.
    """
    self.check(config, inputs)
    sides = PromptVariant((positive,), negative)
    group = ConditionGroup(np.arange(inputs.count), (sides,))
    return self.generate_group(config, group, inputs, progress)

  def generate_group(
    self,
    config: SamplingConfig,
    group: ConditionGroup,
    inputs: GenerationInputs,
    progress: Progress | None = None,
    parameters: Callable[[], Parameters | None] = lambda: None,
  ) -> Iterator[np.ndarray]:
    """As `generate`, the images of one group of those that `inputs` has.

    Args:
      parameters: of the networks that denoise, called for every batch; None
        are those of the engine.
    """
    size, count = self.batch_size(inputs), len(group.places)
    for first in range(0, count, size):
      rows = np.minimum(np.arange(first, first + size), count - 1)
      begun = self.begin(config, group, inputs, rows, parameters())
      images = begun.images
      latents = self._run(begun, config, progress)
      keep = slice(count - first)
      if inputs.batch_row is not None:
        keep = slice(inputs.batch_row, inputs.batch_row + 1)
      if inputs.output == "latents":
        yield processes.gather(latents)[keep]
        continue
      is_masked = images.masks is not None
      known = (images.images, images.masks) if is_masked else None
      decoded = self.codec.decode(latents, config.tile, known)
      if is_masked:
        decoded = paste(decoded, images.images, images.masks)
      yield decoded[keep]

  def batch_size(self, inputs: GenerationInputs) -> int:
    """Rows of a batch."""
    devices = self.sharding.batch_shards
    wanted = inputs.batch
    if inputs.batch_row is None:
      wanted = min(wanted, inputs.count)
    return -(-wanted // devices) * devices

  def check(self, config: SamplingConfig, inputs: GenerationInputs) -> None:
    """Checks that these inputs can be sampled from.

    Raises:
      ValueError: see `InitialLatents.check`; or the schedule has no such
        timesteps, or a classifier is missing.
    """
    self._plan(config)
    if (self._classifier_params is None) != (inputs.labels is None):
      raise ValueError(
        "a classifier and the class that it guides to go together "
        "(--classifier, --class_label)"
      )
    if inputs.labels is not None:
      last = self._classes - 1
      if not 0 <= inputs.labels.min() <= inputs.labels.max() <= last:
        raise ValueError(
          f"class_label must be 0 to {last}, got {inputs.labels.max()}"
        )
    has_zero_snr = self.model.schedule.has_zero_terminal_snr
    if inputs.labels is not None and has_zero_snr:
      raise ValueError(
        "a classifier cannot guide where nothing of the image is left at the "
        "last time (zero_terminal_snr, rectified_flow)"
      )
    self._initial_latents.check(config, inputs)

  def check_memory(
    self, config: SamplingConfig, inputs: GenerationInputs
  ) -> None:
    """Raises TooLarge if no device has the memory to decode a batch."""
    if inputs.output == "images":
      size = config.height, config.width
      shape = self.model.first_stage.latent_shape(*size)
      self.codec.check_memory((self.batch_size(inputs), *shape), config.tile)

  def network_calls(self, config: SamplingConfig) -> int:
    """Evaluations of the network for one batch."""
    return len(self._plan(config).table.index)

  def invert(
    self, config: SamplingConfig, latents: Array, conditioning: Conditioning
  ) -> Float[Array, "b h w c"]:
    """DDIM inversion: the noise from which sampling without noise gives
    these latents  (Song et al. 2021, sec. 4.3).

    Steps are those of config.sampler_config. There is no guidance, which
    inversion could not undo.
    """
    model = self.model
    # At the image itself x0 does not determine the noise.
    final_time = (
      0.0 if model.prediction == "x0" else config.sampler_config.final_time
    )
    sampler_config = dataclasses.replace(
      config.sampler_config, final_time=final_time
    )
    size = self.codec.latent_size(config.height, config.width)
    program = sampler_config.inversion(model.schedule, size).table
    config = dataclasses.replace(config, guidance=ClassifierFreeGuidance())
    rows = np.arange(len(latents))
    keys = self._initial_latents.keys(config, rows)
    start = InitialState(samplers.init_registers(latents), keys)
    inputs = GenerationInputs(len(rows), len(rows))
    sides = PromptVariant((conditioning,), conditioning)
    params = self._params
    batch = Batch(params, self._classifier_params, config, inputs, start, rows)
    schedule = ((1.0, self._step_inputs(batch, sides)),)
    begun = BegunBatch(params, ImageInputs(), program, start, schedule)
    return self._run(begun, config, None)

  def _plan(self, config: SamplingConfig) -> samplers.Plan:
    size = self.codec.latent_size(config.height, config.width)
    schedule = self.model.schedule
    return config.sampler_config.plan(schedule, config.strength, size)

  def begin(
    self,
    config: SamplingConfig,
    group: ConditionGroup,
    inputs: GenerationInputs,
    rows: np.ndarray,
    params: Parameters | None = None,
  ) -> BegunBatch:
    """Encodes the conditions and makes the first noise of some images.

    Args:
      rows: of the images in `group`, a multiple of the devices.
      params: None are the engine's.
    """
    places = group.places[rows]
    images = inputs.image_inputs.rows(places)
    plan, params = self._plan(config), params or self._params
    start = self._initial_latents.start(config, inputs, images, plan, places)
    classifier = self._classifier_params
    batch = Batch(params, classifier, config, inputs, start, places)
    steps = [
      self._step_inputs(batch, variant.rows(rows)) for variant in group.variants
    ]
    schedule = tuple((end, steps[i]) for end, i in group.schedule)
    return BegunBatch(params, images, plan.table, start, schedule)

  def _run(
    self,
    begun: BegunBatch,
    config: SamplingConfig,
    progress: Progress | None,
  ) -> Array:
    """Follows a program piece by piece, one piece ahead of `progress`."""
    window, keys = self.window(config), begun.start.keys
    state, waiting = begun.start.state, []
    with_x0 = progress is not None and progress.with_x0
    if with_x0:
      state = add_x0_register(state)
    length = samplers.CHUNK_ROWS if progress is None else progress.length
    for piece, step in scheduled_pieces(begun.table, length, begun.schedule):
      if with_x0:
        piece = keep_x0(piece)
      with self._log_compilation(config, state, step):
        state, done = self._chunk(
          begun.params, state, piece, keys, step, window=window
        )
      if progress is not None:
        # A copy: the next piece is given the state's own memory.
        waiting.append((done, state[-1] + 0 if with_x0 else None))
        report(progress, waiting, keep=1)
    report(progress, waiting, keep=0)
    return state[0]

  def window(self, config: SamplingConfig) -> int | None:
    """The side of windows in latents, or None."""
    stride = self.model.first_stage.stride
    return None if config.window is None else max(1, config.window // stride)

  @contextlib.contextmanager
  def _log_compilation(
    self, config: SamplingConfig, state: Array, step: StepInputs
  ) -> Iterator[None]:
    """Logs that a new shape is compiled, and how long that took."""
    leaves, form = jax.tree.flatten(step)
    shapes = tuple(map(np.shape, leaves))
    signature = state.shape, config.window, form, shapes
    if signature in self._compiled:
      yield
      return
    self._compiled.add(signature)
    size = f"{config.height} x {config.width}, {state.shape[1]} at a time"
    logger.info("compiling the sampler for %s ...", size)
    began = time.perf_counter()
    yield
    logger.info("compiled in %.1f s", time.perf_counter() - began)
