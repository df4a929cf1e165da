"""x at the first step: noise, or a noised image."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key, UInt32

from ldm_jax.concat_conditioning import low_resolution_input
from ldm_jax.diffusion import samplers
from ldm_jax.latent_diffusion import LatentDiffusion
from ldm_jax.latents import check_image_size
from ldm_jax.nn.conditioners.source_image import SourceImage
from ldm_jax.nn.conditioners.spatial import (
  LowResolution,
  MaskedImage,
  MaskedLatents,
  subsample_mask,
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

_IMAGES = 0  # the stream of image keys

_initial = jax.jit(samplers.initial_noise, static_argnums=1)


class InitialState(NamedTuple):
  """The state in which a batch starts.

  Attributes:
    state: registers of the sampler, [r b h w c]; x is the first.
    keys: one per image, for the noise that samplers add.
    known: the region that inpainting keeps, or None.
    images: inputs of concatenating conditioners, by the name each reads.
    hint: conditioning image of a ControlNet, in [0, 1], or None.
  """

  state: Array
  keys: Array
  known: KnownRegion | None = None
  images: dict[str, Any] | None = None
  hint: Array | None = None


class InitialLatents:
  """Makes the states that one model's sampling starts from."""

  def __init__(
    self,
    model: LatentDiffusion,
    codec: LatentCodec,
    sharding: Sharding,
  ):
    """Compiles nothing yet."""
    self._model, self._codec = model, codec
    self._sharding = sharding

  def check(self, config: SamplingConfig, inputs: GenerationInputs) -> None:
    """Checks that these inputs can be sampled from.

    Raises:
      ValueError: the noise or the images are not of the shapes that the
        config needs, or the model needs others.
    """
    shape = self._shape(config)
    size = config.height, config.width
    check_image_size(self._model, *size, config.window)
    if inputs.initial_noise is not None:
      _check_noise(config, inputs, shape)
    if self._model.find_conditioner(LowResolution):
      self._check_upscaling(config, inputs, shape)
      return
    images = inputs.image_inputs
    is_incomplete = images.images is None or images.masks is None
    if self._model.find_conditioner(MaskedImage) and is_incomplete:
      raise ValueError(
        "this model is for inpainting; give it an image and a mask (--image, "
        "--mask)"
      )
    if self._model.find_conditioner(SourceImage) and images.images is None:
      raise ValueError("this model edits an image; give it one (--image)")
    if (self._model.control is not None) != (images.hints is not None):
      raise ValueError(
        "a ControlNet and its conditioning image go together (--controlnet, "
        "--control_image)"
      )
    size = (inputs.count, config.height, config.width)
    for name in ("images", "masks", "hints"):
      array = getattr(images, name)
      if array is not None and array.shape[:3] != size:
        raise ValueError(
          f"{name} of shape {array.shape}; expected {(*size, ...)}"
        )

  def _check_upscaling(
    self,
    config: SamplingConfig,
    inputs: GenerationInputs,
    shape: tuple[int, int, int],
  ) -> None:
    """Raises ValueError for what an upscaler cannot use."""
    part, images = (
      self._model.find_conditioner(LowResolution),
      inputs.image_inputs,
    )
    if self._model.find_conditioner(MaskedImage):
      raise ValueError(
        "this model reads both a masked and a low-resolution image, which can "
        "be trained but not sampled; leave one of them out of its config"
      )
    if images.images is None:
      raise ValueError(
        "this model is for upscaling; give it an image (--image)"
      )
    most = part.levels - 1
    if part.levels and not 0 <= config.noise_level <= most:
      raise ValueError(
        f"noise level must be 0 to {most}, got {config.noise_level}"
      )
    if images.masks is not None or images.hints is not None:
      raise ValueError("an upscaler reads an image alone; leave masks out")
    small = (inputs.count, *shape[:2])
    if images.images.shape[:3] != small:
      raise ValueError(
        f"images of shape {images.images.shape}; expected {(*small, 3)}"
      )

  def start(
    self,
    config: SamplingConfig,
    inputs: GenerationInputs,
    images: ImageInputs,
    plan: samplers.Plan,
    rows: Int[np.ndarray, " b"],
  ) -> InitialState:
    """The state in which the samples `rows` start, whose images are given."""
    start = self._without_hint(config, inputs, images, plan, rows)
    if images.hints is None:
      return start
    hint = self._sharding.distribute(images.hints.astype(np.float32) / 255)
    return start._replace(hint=hint)

  def _without_hint(
    self,
    config: SamplingConfig,
    inputs: GenerationInputs,
    images: ImageInputs,
    plan: samplers.Plan,
    rows: Int[np.ndarray, " b"],
  ) -> InitialState:
    distribute = self._sharding.distribute
    noise, keys = self._noise(config, inputs, rows)
    if images.images is None:
      return InitialState(_registers(noise, plan.init_noise_sigma), keys)
    if part := self._model.find_conditioner(LowResolution):
      augmentation = noise_augmentation(
        images.images.shape[1:], config.noise_level, keys
      )
      small = low_resolution_input(
        self._model, to_float(distribute(images.images)), augmentation
      )
      state = _registers(noise, plan.init_noise_sigma)
      return InitialState(state, keys, images={part.input_key: small})
    known, concatenated = None, {}
    latents = self._codec.encode(images.images, tile=config.tile)
    masks = images.masks
    if part := self._model.find_conditioner(SourceImage):
      own = latents if part.is_scaled else self._codec.unscaled(latents)
      concatenated[part.input_key] = own
    if masks is not None:
      stride = self._model.first_stage.stride
      if part := self._model.find_conditioner(MaskedImage):
        hidden = self._codec.encode(images.images, masks, config.tile)
        cells = distribute(part.cells(masks, stride))
        concatenated[part.input_key] = MaskedLatents(hidden, cells)
      else:
        is_diffusers = config.sampler_config.compat is not None
        cells = subsample_mask if is_diffusers else latent_mask
        known = KnownRegion(latents, noise, distribute(cells(masks, stride)))
    if (masks is not None or concatenated) and config.strength == 1:
      state = _registers(noise, plan.init_noise_sigma)
      return InitialState(state, keys, known, concatenated)
    level = jax.tree.map(lambda x: jnp.float32(x[0]), plan.table.level)
    xt = level.signal * latents + level.sigma * noise
    return InitialState(_registers(xt, 1.0), keys, known, concatenated)

  def _noise(
    self,
    config: SamplingConfig,
    inputs: GenerationInputs,
    rows: Int[np.ndarray, " b"],
  ) -> tuple[Array, Array]:
    """Noise of unit variance for the samples `rows`, and their keys."""
    distribute, indices = self._sharding.distribute, inputs.first + rows
    if inputs.fractions is None and inputs.variation is None:
      return self._unit_noise(config, inputs, indices), self.keys(
        config, indices
      )
    first = self._unit_noise(config, inputs, np.zeros_like(rows))
    if inputs.variation is not None:
      own = self._unit_noise(config, inputs, indices)
      fraction = np.where(indices == 0, 0, inputs.variation)
      noise = slerp(first, own, distribute(np.float32(fraction)))
      return noise, self.keys(config, indices)
    keys = self.keys(config, np.zeros_like(rows))
    if inputs.end is not None:
      return first, keys
    second = self._unit_noise(config, inputs, np.ones_like(rows))
    fractions = distribute(inputs.fractions[rows].astype(np.float32))
    return slerp(first, second, fractions), keys

  def _unit_noise(
    self,
    config: SamplingConfig,
    inputs: GenerationInputs,
    indices: Int[np.ndarray, " b"],
  ) -> Array:
    """The given noise, or that of the seed, by the images' indices."""
    if inputs.initial_noise is not None:
      noise = inputs.initial_noise[indices].astype(np.float32)
      return self._sharding.distribute(noise)
    return _initial(self.keys(config, indices), self._shape(config))

  def keys(
    self, config: SamplingConfig, indices: Int[np.ndarray, " b"]
  ) -> Array:
    """A key per image; an image is (seed, index)."""
    seed = np.array([config.seed >> 32, config.seed % 2**32], np.uint32)
    return _keys(seed, self._sharding.distribute(indices))

  def _shape(self, config: SamplingConfig) -> tuple[int, int, int]:
    first_stage = self._model.first_stage
    return first_stage.latent_shape(config.height, config.width)


def image_root(seed: int | Array) -> Array:
  """The key from which the keys of a seed's images are made.

  Args:
    seed: up to 64 bits; in an array, its upper and its lower 32.
  """
  return jax.random.fold_in(_seed_key(seed), _IMAGES)


@jax.jit
def _keys(
  seed: UInt32[Array, "2"], indices: Int[Array, " b"]
) -> Key[Array, " b"]:
  return samplers.image_keys(image_root(seed), indices)


def _seed_key(seed: int | Array) -> Array:
  """`jax.random.key`, which by itself ignores all but the lower 32 bits."""
  if isinstance(seed, int):
    if seed < 2**32:
      return jax.random.key(seed)
    seed = np.array([seed >> 32, seed % 2**32], np.uint32)
  return jax.random.wrap_key_data(seed, impl="threefry2x32")


def _check_noise(
  config: SamplingConfig, inputs: GenerationInputs, shape: tuple[int, int, int]
) -> None:
  """Raises ValueError for noise of another shape than the images need."""
  count, subject = inputs.first + inputs.count, f"{inputs.count} images"
  if inputs.fractions is not None:
    count = 1 if inputs.end is not None else 2
    subject = "the ends of an interpolation"
  if inputs.initial_noise.shape != (count, *shape):
    raise ValueError(
      f"initial latents of shape {inputs.initial_noise.shape}; {subject} of "
      f"{config.height} x {config.width} need {(count, *shape)}"
    )


@jax.jit
def _registers(xt: Array, scale: Array) -> Array:
  return samplers.init_registers(xt * scale)
