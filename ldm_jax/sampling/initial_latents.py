"""Where an order begins: noise, or pictures with some of it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from ldm_jax.concat_conditioning import low_resolution_input
from ldm_jax.diffusion import samplers
from ldm_jax.latent_diffusion import LatentDiffusion
from ldm_jax.nn.conditioners.spatial import (
  LowResolution,
  MaskedImage,
  MaskedLatents,
  first_of_cells,
)
from ldm_jax.pixels import to_float
from ldm_jax.runtime.devices.sharding import Sharding
from ldm_jax.sampling.inpainting import (
  KnownRegion,
  latent_mask,
  noise_augmentation,
  slerp,
)
from ldm_jax.sampling.latent_codec import LatentCodec
from ldm_jax.sampling.sampling_config import (
  GenerationInputs,
  ImageInputs,
  SamplingConfig,
)

_PICTURES = 0  # the stream of image keys


class InitialState(NamedTuple):
  """The beginning of a batch.

  Attributes:
    state: registers at the first level.
    keys: one per image, for the noise to come.
    known: what is kept of a picture, or None.
    seen: pictures that conditioners read, by what each reads.
    hint: what a ControlNet reads, in [0, 1], or None.
  """

  state: Array
  keys: Array
  known: KnownRegion | None = None
  seen: dict[str, Any] | None = None
  hint: Array | None = None


class InitialLatents:
  """Makes beginnings for one model."""

  def __init__(
    self,
    model: LatentDiffusion,
    codec: LatentCodec,
    sharding: Sharding,
  ):
    """Compiles nothing yet."""
    self._model, self._darkroom = model, codec
    self._sharding = sharding
    self._initial = jax.jit(samplers.initial_noise, static_argnums=1)
    self._registers = jax.jit(lambda xt, scale: samplers.begin(xt * scale))

  def check(self, settings: SamplingConfig, order: GenerationInputs) -> None:
    """Whether an order can be drawn.

    Raises:
      ValueError: its noise or pictures are not of the shapes that its images
        need, or the model asks for others.
    """
    shape, unit = self._shape(settings), self._model.unit
    for side in (settings.height, settings.width):
      if side % unit or side < 1:
        raise ValueError(
          f"images of {settings.height} x {settings.width}: the networks halve "
          f"them to a {unit}th; try {max(unit, round(side / unit) * unit)} in "
          f"place of {side}"
        )
    if order.noise is not None:
      _check_noise(settings, order, shape)
    given, model = order.given, self._model
    enlarges = model.part(LowResolution)
    if enlarges and model.part(MaskedImage):
      raise ValueError(
        "this model reads a masked image and a small one at once, which is "
        "trained but not drawn with; leave one of them out of its config"
      )
    if model.part(MaskedImage) and (
      given.images is None or given.masks is None
    ):
      raise ValueError(
        "this model is for inpainting; give it an image and a mask (--image, "
        "--mask)"
      )
    if enlarges:
      if given.images is None:
        raise ValueError(
          "this model is for upscaling; give it an image (--image)"
        )
      most = enlarges.levels - 1
      if enlarges.levels and not 0 <= settings.noise_level <= most:
        raise ValueError(
          f"noise level must be 0 to {most}, got {settings.noise_level}"
        )
      if given.masks is not None or given.hints is not None:
        raise ValueError("an upscaler reads an image alone; leave masks out")
      small = (order.count, *shape[:2])
      if given.images.shape[:3] != small:
        raise ValueError(f"images of {given.images.shape}; needed is {small}")
      return
    has_control = self._model.control is not None
    if has_control != (given.hints is not None):
      raise ValueError(
        "a ControlNet and the picture that it reads go together "
        "(--controlnet, --control_image)"
      )
    size = (order.count, settings.height, settings.width)
    for name in ("images", "masks", "hints"):
      array = getattr(given, name)
      if array is not None and array.shape[:3] != size:
        raise ValueError(f"{name} of {array.shape}; the order is of {size}")

  def start(
    self,
    settings: SamplingConfig,
    order: GenerationInputs,
    given: ImageInputs,
    plan: samplers.Plan,
    rows: Int[np.ndarray, " b"],
  ) -> InitialState:
    """The beginning of the images `rows`, for which `given` is given."""
    start = self._without_hint(settings, order, given, plan, rows)
    if given.hints is None:
      return start
    hint = self._sharding.distribute(given.hints.astype(np.float32) / 255)
    return start._replace(hint=hint)

  def _without_hint(
    self,
    settings: SamplingConfig,
    order: GenerationInputs,
    given: ImageInputs,
    plan: samplers.Plan,
    rows: Int[np.ndarray, " b"],
  ) -> InitialState:
    whole = self._sharding.whole
    noise, keys = self._noise(settings, order, rows)
    if given.images is None:
      return InitialState(self._registers(noise, plan.start), keys)
    if enlarges := self._model.part(LowResolution):
      noises = noise_augmentation(
        given.images.shape[1:], settings.noise_level, keys
      )
      seen = low_resolution_input(
        self._model, to_float(whole(given.images)), noises
      )
      state = self._registers(noise, plan.start)
      return InitialState(state, keys, seen={enlarges.input_key: seen})
    known, seen = None, {}
    latents = self._darkroom.encode(given.images, tile=settings.tile)
    masks = given.masks
    if masks is not None:
      stride = self._model.first_stage.stride
      if part := self._model.part(MaskedImage):
        kept = self._darkroom.encode(given.images, masks, settings.tile)
        cells = whole(first_of_cells(masks, stride))
        seen[part.input_key] = MaskedLatents(kept, cells)
      else:
        is_first = settings.sampler_config.compat is not None
        cells = first_of_cells if is_first else latent_mask
        known = KnownRegion(latents, noise, whole(cells(masks, stride)))
    if masks is not None and settings.strength == 1:
      state = self._registers(noise, plan.start)
      return InitialState(state, keys, known, seen)
    first = jax.tree.map(lambda x: jnp.float32(x[0]), plan.program.asked)
    xt = first.signal * latents + first.sigma * noise
    return InitialState(self._registers(xt, 1.0), keys, known, seen)

  def _noise(
    self,
    settings: SamplingConfig,
    order: GenerationInputs,
    rows: Int[np.ndarray, " b"],
  ) -> tuple[Array, Array]:
    """Noise of unit variance for the images `rows`, and their keys."""
    whole = self._sharding.whole
    keys = self.keys(settings, order.first + rows)
    if order.shares is None and order.variation is None:
      return self._noise_of(settings, order, rows), keys
    first = self._noise_of(settings, order, np.zeros_like(rows))
    if order.variation is not None:
      own = self._noise_of(settings, order, rows)
      share = np.where(rows == 0, 0, order.variation)
      return slerp(first, own, whole(np.float32(share))), keys
    keys = self.keys(settings, np.full_like(rows, order.first))
    if order.toward is not None:
      return first, keys
    second = self._noise_of(settings, order, np.ones_like(rows))
    shares = whole(order.shares[rows].astype(np.float32))
    return slerp(first, second, shares), keys

  def _noise_of(
    self,
    settings: SamplingConfig,
    order: GenerationInputs,
    rows: Int[np.ndarray, " b"],
  ) -> Array:
    """The noise that is given, or the seed's."""
    if order.noise is not None:
      return self._sharding.distribute(order.noise[rows].astype(np.float32))
    keys = self.keys(settings, order.first + rows)
    return self._initial(keys, self._shape(settings))

  def keys(
    self, settings: SamplingConfig, rows: Int[np.ndarray, " b"]
  ) -> Array:
    """A key per image; an image is (seed, index)."""
    rows = self._sharding.distribute(rows)
    return samplers.image_keys(image_root(settings.seed), rows)

  def _shape(self, settings: SamplingConfig) -> tuple[int, int, int]:
    first_stage = self._model.first_stage
    return first_stage.latent_shape(settings.height, settings.width)


def image_root(seed: int | Array) -> Array:
  """The key that the keys of a seed's images are made from."""
  return jax.random.fold_in(jax.random.key(seed), _PICTURES)


def _check_noise(
  settings: SamplingConfig, order: GenerationInputs, shape: tuple[int, int, int]
) -> None:
  """Raises ValueError for noise of another shape than an order needs."""
  count, what = order.count, f"{order.count} images"
  if order.shares is not None:
    count = 1 if order.toward is not None else 2
    what = "the ends of a way between images"
  if order.noise.shape != (count, *shape):
    raise ValueError(
      f"initial latents of shape {order.noise.shape}; {what} of "
      f"{settings.height} x {settings.width} need {(count, *shape)}"
    )
