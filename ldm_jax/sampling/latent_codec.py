"""The first stage: uint8 images to scaled latents and back, in tiles if asked.

Tiles bound the memory that large images need. Those of an `Autoencoder` equal
the whole. Of other first stages, tiles overlap and are blended: norms and
attention see a tile instead of the image, so tiles differ from the whole and
from each other; how much is measured where they overlap.
"""

import functools
import logging
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8

from ldm_jax.errors import NonFinite
from ldm_jax.latent_diffusion import LatentDiffusion, Parameters
from ldm_jax.nn.conditioners.spatial import MaskedImage
from ldm_jax.nn.conv_stack.exact_tiles import (
  decode_in_tiles,
  encode_in_tiles,
  has_exact_tiles,
)
from ldm_jax.nn.first_stage import Posterior
from ldm_jax.nn.inpainting_decoder import InpaintingAutoencoder
from ldm_jax.nn.latent_normalization import denormalize, normalize
from ldm_jax.nn.operators.choice import current_operators, operators_of
from ldm_jax.pixels import to_float, to_uint8
from ldm_jax.runtime.devices import memory, processes
from ldm_jax.runtime.devices.activation_sharding import constrain_activations
from ldm_jax.runtime.devices.sharding import Sharding
from ldm_jax.runtime.program_cache import shared_by_value
from ldm_jax.runtime.stored_programs import StoredProgram, stored_value
from ldm_jax.sampling.tiling import blend

logger = logging.getLogger(__name__)

# Images, and masks that are true where they are generated.
Known = tuple[UInt8[np.ndarray, "b H W 3"], Bool[np.ndarray, "b H W"]]


class Decoding(NamedTuple):
  """Images that the devices compute, how much their tiles differ, and how many
  are not finite."""

  images: Array
  seam: Array | None
  bad: Array


class LatentCodec:
  """A model's first stage with its parameters."""

  def __init__(
    self,
    model: LatentDiffusion,
    params: Parameters,
    sharding: Sharding,
  ):
    """Compiles nothing yet."""
    self._model, self._params, self._sharding = model, params, sharding
    self._encode, self._decode = _programs(model, sharding)
    self._bytes: dict[tuple, int] = {}  # of decoding, by shape

  def latent_size(self, height: int, width: int) -> tuple[int, int]:
    """(h, w) of the latents of a height x width image."""
    shape = self._model.first_stage.latent_shape(height, width)
    return shape[0], shape[1]

  def set_parameters(self, params: Parameters) -> None:
    """Uses other parameters of the same shapes from now on."""
    self._params = params

  def encode(
    self,
    images: UInt8[np.ndarray, "b H W 3"],
    masks: Bool[np.ndarray, "b H W"] | None = None,
    tile: int | None = None,
  ) -> Float[Array, "b h w c"]:
    """Scaled latents, the posterior's mode; pixels under a mask are hidden.

    Args:
      tile: side in pixels.
    """
    latents, seam = self._encode(
      self._params,
      self._sharding.distribute(images),
      None if masks is None else self._sharding.distribute(masks),
      tile=tile,
    )
    if seam is not None:
      logger.warning("tiles encoded differ by %.3f in latents", float(seam))
    return latents

  def unscaled(
    self, latents: Float[Array, "b h w c"]
  ) -> Float[Array, "b h w c"]:
    """Latents as the first stage encodes them: neither scaled nor
    normalised."""
    first_stage = self._model.first_stage
    return denormalize(first_stage, latents / self._params.latent_scale)

  def decode(
    self,
    latents: Float[Array, "b h w c"],
    tile: int | None = None,
    known: Known | None = None,
  ) -> UInt8[np.ndarray, "b H W 3"]:
    """Scaled latents to images.

    Args:
      tile: side in pixels.
      known: images and masks of what is inpainted, which a decoder may read
        that was made for it (`InpaintingAutoencoder`). In tiles it does not.

    Raises:
      NonFinite: an image holds NaN or infinity.
    """
    return self.decoded(self.begin_decoding(latents, tile, known))

  def begin_decoding(
    self,
    latents: Float[Array, "b h w c"],
    tile: int | None = None,
    known: Known | None = None,
  ) -> Decoding:
    """As `decode`, but waits for nothing; `decoded` does."""
    has_known = isinstance(self._model.first_stage, InpaintingAutoencoder)
    if known is not None and has_known and tile is None:
      known = tuple(map(self._sharding.distribute, known))
    else:
      known = None
    decoded = self._decode(self._params, latents, known, tile=tile)
    return Decoding(*decoded)

  def decoded(self, decoding: Decoding) -> UInt8[np.ndarray, "b H W 3"]:
    """The images; raises as `decode`."""
    images, seam, bad = decoding
    if int(bad):
      raise NonFinite(
        f"{int(bad)} of {len(images)} images hold NaN or infinity; "
        "compute in float32, or check the weights"
      )
    if seam is not None:
      logger.warning(
        "tiles decoded differ by %.2f of 255 (root mean square where they "
        "overlap)",
        127.5 * float(seam),
      )
    return processes.gather(images)

  def check_memory(
    self, shape: tuple[int, int, int, int], tile: int | None
  ) -> None:
    """Raises TooLarge if latents of this shape cannot be decoded in the
    memory that a device has left; a batch is spread over all."""
    rows, height, width, channels = shape
    stride = self._model.first_stage.stride
    if tile is not None and not has_exact_tiles(self._model.first_stage):
      height, width = (min(n, _side(tile, stride)) for n in (height, width))
      tile = None
    rows = -(-rows // self._sharding.batch_shards)
    one = jax.ShapeDtypeStruct((rows, height, width, channels), jnp.float32)
    key = one.shape, tile, current_operators()
    if key not in self._bytes:
      decode = functools.partial(_decode, self._model, tile=tile)
      self._bytes[key] = stored_value(
        ("bytes of decoding", self._model, one, tile, current_operators()),
        lambda: memory.minimum_bytes(decode, self._params, one),
      )
    needed = self._bytes[key]
    memory.check_fits(
      f"decoding {rows} of {height * stride} x {width * stride}",
      needed,
      "a smaller --batch, --height and --width, or --tiled",
    )


def _encode(
  model: LatentDiffusion, params: Parameters, images: Array, *, tile: int | None
) -> Posterior:
  """`LatentDiffusion.encode`, in exact tiles if asked to."""
  if tile is None:
    return model.encode(params, images)
  stage = model.first_stage
  posterior = encode_in_tiles(stage, params.first_stage, images, tile=tile)
  return normalize(stage, posterior)


def _decode(
  model: LatentDiffusion,
  params: Parameters,
  latents: Array,
  known: tuple[Array, Array] | None = None,
  *,
  tile: int | None,
) -> Array:
  """`LatentDiffusion.decode`, in exact tiles if asked to."""
  if tile is None and known is None:
    return model.decode(params, latents)
  stage = model.first_stage
  unscaled = denormalize(stage, latents / params.latent_scale)
  if known is not None:
    images, holes = known
    given = to_float(images), holes[..., None].astype(jnp.float32)
    return stage.apply(params.first_stage, unscaled, *given, method="decode")
  return decode_in_tiles(stage, params.first_stage, unscaled, tile=tile)


def _side(tile: int, stride: int) -> int:
  """Of a blended tile in latents."""
  return max(1, tile // stride)


@shared_by_value
def _programs(
  model: LatentDiffusion, sharding: Sharding
) -> tuple[Callable, Callable]:
  """Encoding and decoding, jitted."""

  def program(name: str, function: Callable) -> StoredProgram:
    bound = functools.partial(function, model)
    jitted = jax.jit(
      constrain_activations(bound, sharding), static_argnames="tile"
    )
    parts = name, model, sharding
    return StoredProgram(jitted, parts, operators_of(*parts))

  return program("encoder", _encoded), program("decoder", _decoded)


def _encoded(
  model: LatentDiffusion,
  params: Parameters,
  images: Array,
  masks: Array | None,
  *,
  tile: int | None,
) -> tuple[Array, Array | None]:
  images, seam = to_float(images), None
  if masks is not None:
    part = model.find_conditioner(MaskedImage) or MaskedImage()
    images = part.mask_images(images, masks)
  if tile is None or has_exact_tiles(model.first_stage):
    latents = _encode(model, params, images, tile=tile).mode()
  else:
    stride = model.first_stage.stride
    size = (images.shape[1] // stride, images.shape[2] // stride)
    latents, seam = blend(
      lambda crop: model.encode(params, crop(images)).mode(),
      size,
      _side(tile, stride),
    )
  return latents * params.latent_scale, seam


def _decoded(
  model: LatentDiffusion,
  params: Parameters,
  latents: Array,
  known: tuple[Array, Array] | None,
  *,
  tile: int | None,
) -> tuple[Array, Array | None, Array]:
  """Images, how much tiles differ, and how many images are not finite."""
  seam = None
  if tile is None or has_exact_tiles(model.first_stage):
    images = _decode(model, params, latents, known, tile=tile)
  else:
    stride = model.first_stage.stride
    images, seam = blend(
      lambda crop: jnp.clip(model.decode(params, crop(latents)), -1, 1),
      latents.shape[1:3],
      _side(tile, stride),
      stride,
    )
  bad = ~jnp.isfinite(images).all((1, 2, 3))
  return to_uint8(images), seam, bad.sum()
