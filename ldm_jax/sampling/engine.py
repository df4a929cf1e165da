"""A model ready to draw: chunks of steps strung together."""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from ldm_jax.diffusion import samplers
from ldm_jax.diffusion.guidance import Guidance, classifier_guided
from ldm_jax.diffusion.prediction import Denoiser, thresholded
from ldm_jax.diffusion.schedule import like
from ldm_jax.latent_diffusion import LatentDiffusion, Parameters
from ldm_jax.nn.conditioners.conditioner import has_null
from ldm_jax.nn.conditioners.embedders import Condition
from ldm_jax.nn.encoder_unet import EncoderUNet
from ldm_jax.runtime.devices import attention_kernels, processes
from ldm_jax.runtime.devices.activation_sharding import constrain_activations
from ldm_jax.runtime.devices.sharding import Sharding
from ldm_jax.sampling.initial_latents import InitialLatents, InitialState
from ldm_jax.sampling.inpainting import KnownRegion, paste
from ldm_jax.sampling.latent_codec import LatentCodec
from ldm_jax.sampling.sampling_config import (
  Conditioning,
  GenerationInputs,
  SamplingConfig,
)
from ldm_jax.sampling.tiling import Crop, windowed


class _Wish(NamedTuple):
  """What a chunk of steps is asked for; all of it is traced.

  Attributes:
    negative: None where guidance is off.
    known: None unless a part of the image is kept.
    lead: a classifier's parameters, the classes it leads to, and how much.
  """

  positive: Condition
  negative: Condition | None
  guidance: Guidance
  threshold: tuple[float, float] | None
  known: KnownRegion | None
  lead: tuple[Any, Array, float] | None = None


class SamplingEngine:
  """A model with its parameters on the devices, ready to draw."""

  def __init__(
    self,
    model: LatentDiffusion,
    params: Parameters,
    sharding: Sharding,
    say: Callable[[str], None] = lambda line: None,
    classifier: tuple[EncoderUNet, Any] | None = None,
  ):
    """Compiles nothing yet.

    Attention takes the kernels of the machine.

    Args:
      classifier: with its parameters; it guides orders that have labels.
      say: is told of compilations, which are long, and of seams.
    """
    model = attention_kernels.with_attention_kernels(model, sharding)
    self._model, self._params, self._sharding = model, params, sharding
    self._say, self._compiled, self._classifier = say, set(), classifier
    self._hear = jax.jit(constrain_activations(self._heard, sharding))
    self.codec = LatentCodec(model, params, sharding, say)
    self._starter = InitialLatents(model, self.codec, sharding)
    self._chunk = jax.jit(
      constrain_activations(self._steps, sharding),
      static_argnames="window",
      donate_argnums=1,
    )

  def draw(
    self,
    settings: SamplingConfig,
    positive: Conditioning,
    negative: Conditioning,
    order: GenerationInputs,
    progress: Callable[[int], None] = lambda rows: None,
  ) -> Iterator[np.ndarray]:
    """Yields images, uint8 [b h w 3], or latents in order, a batch at a time.

    An image's noise is a function of (settings.seed, its index) alone, so it
    does not depend on `batch` or on the devices. Batches are rounded up to a
    multiple of the devices, over which they are spread.

    Args:
      progress: called with the number of questions to the network just
        answered, `questions` in all for a batch.
    """
    self.check(settings, order)
    size = self.batch(order)
    for first in range(0, order.count, size):
      rows = np.minimum(np.arange(first, first + size), order.count - 1)
      given = order.given.rows(rows)
      plan = self._plan(settings)
      start = self._starter.start(settings, order, given, plan, rows)
      shares = None if order.shares is None else order.shares[rows]
      toward = order.toward and (order.toward.rows(rows), shares)
      sides = positive.rows(rows), negative.rows(rows), toward
      wish = self._wish(settings, sides, start)
      if order.labels is not None:
        labels = self._sharding.distribute(order.labels[rows].astype(np.int32))
        lead = (self._classifier[1], labels, settings.classifier)
        wish = wish._replace(lead=lead)
      latents = self._follow(settings, plan.program, wish, start, progress)
      left = slice(order.count - first)
      if order.output == "latents":
        yield processes.gather(latents)[left]
        continue
      drawn = self.codec.decode(latents, settings.tile)
      if given.masks is not None:
        drawn = paste(drawn, given.images, given.masks)
      yield drawn[left]

  def batch(self, order: GenerationInputs) -> int:
    """Images that are drawn at a time."""
    devices = self._sharding.batch_shards
    return -(-min(order.batch, order.count) // devices) * devices

  def check(self, settings: SamplingConfig, order: GenerationInputs) -> None:
    """Whether an order can be drawn.

    Raises:
      ValueError: see `InitialLatents.check`; or the sampler has no such grid.
    """
    self._plan(settings)
    if (self._classifier is None) != (order.labels is None):
      raise ValueError(
        "a classifier and the class that it leads to go together "
        "(--classifier, --class_label)"
      )
    if order.labels is not None and self._model.schedule.has_zero_terminal_snr:
      raise ValueError(
        "a classifier cannot lead where nothing of the image is left at the "
        "last time (zero_terminal_snr, rectified_flow)"
      )
    self._starter.check(settings, order)

  def check_room(
    self, settings: SamplingConfig, order: GenerationInputs
  ) -> None:
    """Raises TooLarge if no device has the memory for an order's pictures."""
    if order.output == "images":
      size = settings.height, settings.width
      shape = self._model.first_stage.latent_shape(*size)
      self.codec.check_room((self.batch(order), *shape), settings.tile)

  def questions(self, settings: SamplingConfig) -> int:
    """How often the network is asked for a batch."""
    return len(self._plan(settings).program.index)

  def invert(
    self, settings: SamplingConfig, latents: Array, said: Conditioning
  ) -> Float[Array, "b h w c"]:
    """The noise from which these latents would be drawn without noise added.

    DDIM's inversion, unguided: guidance does not come back the way it went.
    settings.recipe gives steps and spacing.
    """
    model = self._model
    # At the image itself x0 alone does not tell noise; at the first time it
    # does.
    final_sigma = (
      0.0 if model.prediction == "x0" else settings.sampler_config.final_sigma
    )
    sampler_config = dataclasses.replace(
      settings.sampler_config, final_sigma=final_sigma
    )
    program = sampler_config.inversion(model.schedule).program
    settings = dataclasses.replace(settings, guidance=Guidance())
    keys = self._starter.keys(settings, np.arange(len(latents)))
    start = InitialState(samplers.begin(latents), keys)
    wish = self._wish(settings, (said, said, None), start)
    return self._follow(settings, program, wish, start, lambda rows: None)

  def _plan(self, settings: SamplingConfig) -> samplers.Plan:
    return settings.sampler_config.plan(self._model.schedule, settings.strength)

  def _wish(
    self,
    settings: SamplingConfig,
    sides: tuple[
      Conditioning, Conditioning, tuple[Conditioning, np.ndarray] | None
    ],
    start: InitialState,
  ) -> _Wish:
    """What is said, as the network hears it; `sides` is positive, negative,
    and where the positive is led with how far."""

    nulls = [p.input_key for p in self._model.conditioners if has_null(p)]

    def hear(said: Conditioning, unsaid: Sequence[str] = ()) -> Condition:
      said = self._sharding.distribute(said).seeing(start.seen or {}, unsaid)
      condition = self._hear(self._params, said)
      told = np.tile(np.float32(settings.control), (len(start.keys), 1))
      return condition.replace(
        hint=start.hint,
        control=None if start.hint is None else self._sharding.distribute(told),
      )

    positive, negative, toward = sides
    heard = hear(positive)
    if toward is not None:
      shares = self._sharding.distribute(toward[1].astype(np.float32))
      lead = lambda a, b: a + like(shares, a) * (b - a)
      heard = jax.tree.map(lead, heard, hear(toward[0]))
    is_guided = bool(nulls) and settings.guidance.is_on
    return _Wish(
      heard,
      hear(negative, nulls) if is_guided else None,
      settings.guidance,
      settings.threshold,
      start.known,
    )

  def _heard(self, params: Parameters, said: Conditioning) -> Condition:
    """What is said, each token's state as far from silence as it weighs.

    z = z_empty + weight (z - z_empty), as ComfyUI has it.
    """
    hear = lambda raw: self._model.condition(params, raw, said.is_null)
    condition = hear(said.raw)
    if said.weights is None:
      return condition
    silence = hear(said.empty).context
    weights = said.weights[..., None]
    context = silence + weights * (condition.context - silence)
    return condition.replace(context=context)

  def _follow(
    self,
    settings: SamplingConfig,
    program: samplers.Row,
    wish: _Wish,
    start: InitialState,
    progress: Callable[[int], None],
  ) -> Array:
    """A program chunk by chunk, one chunk ahead of what is done."""
    window = settings.window
    if window is not None:
      window = max(1, window // self._model.first_stage.stride)
    state, waiting = start.state, None
    for piece in samplers.chunks(program):
      with self._compiling(settings, state, wish):
        state, done = self._chunk(
          self._params, state, piece, start.keys, wish, window=window
        )
      if waiting is not None:
        progress(int(waiting))  # once it is known
      waiting = done
    progress(int(waiting))  # once it is known
    return state[0]

  @contextlib.contextmanager
  def _compiling(self, settings: SamplingConfig, state: Array, wish: _Wish):
    """Says that a new shape is being compiled, and how long that took."""
    signature = (state.shape, settings.window, jax.tree.structure(wish))
    if signature in self._compiled:
      yield
      return
    self._compiled.add(signature)
    size = f"{settings.height} x {settings.width}, {state.shape[1]} at a time"
    self._say(f"compiling the sampler for {size} ...")
    began = time.perf_counter()
    yield
    self._say(f"compiled in {time.perf_counter() - began:.1f} s")

  def _steps(
    self,
    params: Parameters,
    state: Array,
    piece: samplers.Row,
    keys: Array,
    wish: _Wish,
    *,
    window: int | None,
  ) -> tuple[Array, Array]:
    """A chunk of steps, all but the window traced; and how many there were."""

    def make(crop: Crop = lambda array: array) -> Denoiser:
      cut = lambda condition: condition.replace(
        concat=jax.tree.map(crop, condition.concat),
        hint=jax.tree.map(crop, condition.hint),
      )
      positive = cut(wish.positive)
      if wish.negative is None:
        return self._model.denoiser(params, positive)
      return self._model.guided(
        params, cut(wish.negative), positive, wish.guidance
      )

    size = state.shape[2:4]
    denoise = make() if window is None else windowed(make, size, window)
    if wish.lead is not None:
      told, labels, scale = wish.lead
      logits = functools.partial(self._classifier[0].apply, told)
      denoise = classifier_guided(denoise, logits, labels, scale)
    if wish.threshold is not None:
      denoise = thresholded(denoise, *wish.threshold)
    mend = (lambda x, level: x) if wish.known is None else wish.known.mend
    state = samplers.run(denoise, state, piece, keys, mend)
    return state, piece.is_active.sum()
