"""A first stage as compiled programs: encode, decode, their time and memory."""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, UInt8

from ldm_jax.evaluation.first_stage.load import LoadedFirstStage
from ldm_jax.evaluation.reconstruct import padded
from ldm_jax.nn.bottleneck import DiagonalGaussian
from ldm_jax.pixels import to_float, to_uint8
from ldm_jax.runtime.devices import processes
from ldm_jax.runtime.devices.sharding import Sharding

Images = UInt8[np.ndarray, "_ _ _ 3"]


class Encoded(NamedTuple):
  """Latents on the host.

  Attributes:
    mode: of the posteriors.
    logvar: of the posteriors, if they are Gaussian.
  """

  mode: Float[np.ndarray, "n h w c"]
  logvar: Float[np.ndarray, "n h w c"] | None


class Cost(NamedTuple):
  """What a batch costs.

  Attributes:
    encoded, decoded: images per second, the median over the rounds.
    decoding_bytes: of intermediate results and images of decoding a batch, by
      the compiler's analysis, without parameters; None where it has none.
  """

  encoded: float
  decoded: float
  decoding_bytes: int | None


class Codec:
  """Encodes and decodes in equal batches; compiles once for each size."""

  def __init__(self, stage: LoadedFirstStage, sharding: Sharding, batch: int):
    """`batch` is rounded up to a multiple of the devices."""
    self._stage, self._sharding = stage, sharding
    self._batch = -(-batch // sharding.batch_shards) * sharding.batch_shards
    self._programs: dict[tuple, Any] = {}

    def encode(variables: Any, images: jax.Array) -> Any:
      posterior = stage.module.apply(
        variables, to_float(images), method="encode"
      )
      is_gaussian = isinstance(posterior, DiagonalGaussian)
      return posterior.mode(), posterior.logvar if is_gaussian else None

    def decode(variables: Any, latents: jax.Array) -> jax.Array:
      return to_uint8(stage.module.apply(variables, latents, method="decode"))

    self._encode, self._decode = encode, decode

  def encode(self, images: Images) -> Encoded:
    """Latents of images."""
    parts = list(self._batches(self._encode, images))
    logvar = None
    if parts[0][1] is not None:
      logvar = np.concatenate([part[1] for part in parts])
    return Encoded(np.concatenate([part[0] for part in parts]), logvar)

  def decode(self, latents: Float[np.ndarray, "n h w c"]) -> Images:
    """Images of latents."""
    latents = np.asarray(latents, np.float32)
    return np.concatenate(list(self._batches(self._decode, latents)))

  def reconstruct(self, images: Images) -> Images:
    """decode(mode of encode(images))."""
    return self.decode(self.encode(images).mode)

  def cost(self, images: Images, rounds: int) -> Cost:
    """Time and memory of one batch of such images, after compilation."""
    batch = self._batch_of(images[: self._batch])
    encoder = self._program(self._encode, batch)
    mode = encoder(self._stage.variables, batch)[0]
    latents = self._batch_of(processes.gather(mode))
    decoder = self._program(self._decode, latents)
    memory = decoder.memory_analysis()
    size = memory and memory.temp_size_in_bytes + memory.output_size_in_bytes
    return Cost(
      self._rate(encoder, batch, rounds),
      self._rate(decoder, latents, rounds),
      size,
    )

  def _rate(self, program: Callable, batch: jax.Array, rounds: int) -> float:
    """Images per second: the median of so many rounds after one more."""
    jax.block_until_ready(program(self._stage.variables, batch))
    seconds = []
    for _ in range(rounds):
      begun = time.perf_counter()
      jax.block_until_ready(program(self._stage.variables, batch))
      seconds.append(time.perf_counter() - begun)
    return self._batch / statistics.median(seconds)

  def _batches(self, function: Callable, rows: np.ndarray):
    """The results of all batches, without the padding of the last."""
    for begin in range(0, len(rows), self._batch):
      part = rows[begin : begin + self._batch]
      batch = self._batch_of(part)
      found = self._program(function, batch)(self._stage.variables, batch)
      yield jax.tree.map(_first(len(part)), found)

  def _batch_of(self, rows: np.ndarray) -> jax.Array:
    return self._sharding.distribute(padded(rows, self._batch))

  def _program(self, function: Callable, batch: jax.Array) -> Any:
    key = function, batch.shape
    if key not in self._programs:
      lowered = jax.jit(function).lower(self._stage.variables, batch)
      self._programs[key] = lowered.compile()
    return self._programs[key]


def _first(count: int) -> Callable[[jax.Array], np.ndarray]:
  """A function that takes the first rows of a global array to the host."""
  return lambda rows: processes.gather(rows)[:count]
