"""How images are made: conditions in, chunks of steps strung together, out."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Int, UInt8

from ldm_jax.diffusion import samplers
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
  """

  height: int
  width: int
  steps: int = 50
  guidance: float = 3.0
  sampler: Sampler = "ddim"
  grid: samplers.Grid = "leading"
  eta: float = 0.0
  seed: int = 0


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
    *,
    count: int,
    batch: int,
    progress: Callable[[int], None] = lambda steps: None,
  ) -> Iterator[UInt8[np.ndarray, "b h w 3"]]:
    """Yields `count` images in order, at most `batch` at a time.

    An image's noise is a function of (settings.seed, its index) alone, so it
    does not depend on `batch` or on the devices.

    Args:
      progress: called with the number of steps just done.
    """
    for start in range(0, count, batch):
      rows = np.minimum(np.arange(start, start + batch), count - 1)
      images = self._batch(
        settings, positive.rows(rows), negative.rows(rows), rows, progress
      )
      yield np.asarray(images)[: count - start]

  def _batch(
    self,
    settings: Settings,
    positive: Said,
    negative: Said,
    rows: Int[np.ndarray, " b"],
    progress: Callable[[int], None],
  ) -> Array:
    model, params = self._model, self._params
    place = lambda said: self._sharding.whole(said)
    say = lambda said: self._condition(params, said.raw, said.is_null)
    wish = _Wish(
      say(place(positive)),
      say(place(negative)),
      settings.guidance,
      settings.eta,
    )
    root = jax.random.fold_in(jax.random.key(settings.seed), _PICTURES)
    keys = samplers.image_keys(root, self._sharding.whole(rows))
    shape = model.first_stage.latent_shape(settings.height, settings.width)
    xt = self._begin(keys, shape)
    times = samplers.times(settings.steps, settings.grid, model.schedule.steps)
    is_guided = bool(model.conditioners) and settings.guidance != 1.0
    for piece in samplers.chunks(samplers.rows(times)):
      xt = self._chunk(
        params,
        xt,
        piece,
        keys,
        wish,
        sampler=settings.sampler,
        is_guided=is_guided,
      )
      progress(int(piece.is_active.sum()))
    return self._decode(params, xt)

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
