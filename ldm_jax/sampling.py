"""How images are made: conditions in, chunks of steps strung together, out."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from ldm_jax.diffusion import samplers
from ldm_jax.diffusion.schedule import CLEAN
from ldm_jax.latent_diffusion import LatentDiffusion, Parameters, to_uint8
from ldm_jax.nn.conditioner import Condition
from ldm_jax.runtime.sharding import Sharding

Sampler = Literal["ddim", "ddpm"]
_PICTURES = 0  # the stream of image keys; an image is (seed, index)


@dataclasses.dataclass(frozen=True)
class Said:
  """What is said to the conditioners, by what each reads.

  Attributes:
    raw: arrays [b ...], one row per image.
    is_null: per conditioner, where nothing is said, bool [b].
  """

  # Any: as a tree it carries arrays of either library.
  raw: dict[str, Any]
  is_null: dict[str, Any]

  def rows(self, places: Int[np.ndarray, " n"]) -> "Said":
    """The same for some of the images."""
    return jax.tree.map(lambda x: x[places], self)


jax.tree_util.register_dataclass(Said)


@dataclasses.dataclass(frozen=True)
class Settings:
  """How to sample. Only `sampler`, the size, and whether guidance is on at
  all (scale 1 turns it off) compile anew; the rest is data.

  Attributes:
    guidance: scale of classifier-free guidance.
    eta: noise of DDIM; scale of the noise of DDPM.
    height, width: of the images, in pixels.
    landing: the time of the last step's result. Stable Diffusion's samplers
      stop at 0, the schedule's first time, and leave its little noise in.
  """

  height: int
  width: int
  steps: int = 50
  guidance: float = 3.0
  sampler: Sampler = "ddim"
  grid: samplers.Grid = "leading"
  eta: float = 0.0
  seed: int = 0
  landing: float = CLEAN


@dataclasses.dataclass(frozen=True)
class Order:
  """How much to draw, and of what kind.

  Attributes:
    count: images in all.
    batch: images at a time.
    noise: [count h w c] of unit variance in place of the seed's, or None.
    output: pictures, or scaled latents as they leave the sampler.
  """

  count: int
  batch: int
  noise: Float[np.ndarray, "n h w c"] | None = None
  output: Literal["images", "latents"] = "images"


class _Wish(NamedTuple):
  """What a chunk of steps is asked for; all of it is traced."""

  positive: Condition
  negative: Condition
  guidance: Any
  eta: Any


class Studio:
  """A model with its parameters on the devices, ready to draw."""

  def __init__(
    self, model: LatentDiffusion, params: Parameters, sharding: Sharding
  ):
    self._model, self._params, self._sharding = model, params, sharding
    self._condition = jax.jit(model.condition)
    self._decode = jax.jit(
      lambda params, x0: to_uint8(model.decode(params, x0))
    )
    self._begin = jax.jit(samplers.initial_noise, static_argnums=1)
    self._chunk = jax.jit(
      self._steps, static_argnames=("sampler", "is_guided"), donate_argnums=1
    )

  def draw(
    self,
    settings: Settings,
    positive: Said,
    negative: Said,
    order: Order,
    progress: Callable[[int], None] = lambda steps: None,
  ) -> Iterator[np.ndarray]:
    """Yields images, uint8 [b h w 3], or latents in order, a batch at a time.

    An image's noise is a function of (settings.seed, its index) alone, so it
    does not depend on `batch` or on the devices.

    Args:
      progress: called with the number of steps just done.
    """
    self.check(settings, order)
    for start in range(0, order.count, order.batch):
      rows = np.minimum(np.arange(start, start + order.batch), order.count - 1)
      xt, keys = self._start(settings, order, rows)
      wish = self._wish(settings, positive.rows(rows), negative.rows(rows))
      x0 = self._descend(settings, wish, xt, keys, progress)
      if order.output == "images":
        x0 = self._decode(self._params, x0)
      yield np.asarray(x0)[: order.count - start]

  def check(self, settings: Settings, order: Order) -> None:
    """Whether an order can be drawn.

    Raises:
      ValueError: its noise is not of the shape of its images' latents.
    """
    shape = self._shape(settings)
    if order.noise is not None and order.noise.shape != (order.count, *shape):
      raise ValueError(
        f"initial latents of shape {order.noise.shape}; {order.count} images "
        f"of {settings.height} x {settings.width} need {(order.count, *shape)}"
      )

  def _shape(self, settings: Settings) -> tuple[int, int, int]:
    first_stage = self._model.first_stage
    return first_stage.latent_shape(settings.height, settings.width)

  def _start(
    self, settings: Settings, order: Order, rows: Int[np.ndarray, " b"]
  ) -> tuple[Array, Array]:
    """x_T of the images `rows`, and their keys."""
    root = jax.random.fold_in(jax.random.key(settings.seed), _PICTURES)
    keys = samplers.image_keys(root, self._sharding.whole(rows))
    if order.noise is None:
      return self._begin(keys, self._shape(settings)), keys
    return self._sharding.whole(order.noise[rows].astype(np.float32)), keys

  def _wish(self, settings: Settings, positive: Said, negative: Said) -> _Wish:
    def hear(said: Said) -> Condition:
      said = self._sharding.whole(said)
      return self._condition(self._params, said.raw, said.is_null)

    return _Wish(
      hear(positive), hear(negative), settings.guidance, settings.eta
    )

  def _descend(
    self,
    settings: Settings,
    wish: _Wish,
    xt: Array,
    keys: Array,
    progress: Callable[[int], None],
  ) -> Array:
    """From x_T to x_0, chunk by chunk."""
    model = self._model
    times = samplers.times(settings.steps, settings.grid, model.schedule.steps)
    is_guided = bool(model.conditioners) and settings.guidance != 1.0
    for piece in samplers.chunks(samplers.rows(times, settings.landing)):
      xt = self._chunk(
        self._params,
        xt,
        piece,
        keys,
        wish,
        sampler=settings.sampler,
        is_guided=is_guided,
      )
      progress(int(piece.is_active.sum()))
    return xt

  def _steps(
    self,
    params: Parameters,
    xt: Array,
    piece: samplers.Row,
    keys: Array,
    wish: _Wish,
    *,
    sampler: Sampler,
    is_guided: bool,
  ) -> Array:
    """A chunk of steps, all but the last two arguments traced."""
    model = self._model
    if is_guided:
      denoise = model.guided(
        params, wish.negative, wish.positive, wish.guidance
      )
    else:
      denoise = model.denoiser(params, wish.positive)
    step = samplers.SAMPLERS[sampler](model.schedule, wish.eta)
    return samplers.run(step, denoise, xt, piece, keys)
