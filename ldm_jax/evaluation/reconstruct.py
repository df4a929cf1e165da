"""Reconstructions of images by the first stage of a run."""

from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Shaped, UInt8

from ldm_jax.latents import check_encoder
from ldm_jax.pixels import to_float, to_uint8
from ldm_jax.run import Run, is_autoencoder
from ldm_jax.runtime.devices import processes
from ldm_jax.runtime.devices.sharding import Sharding

BATCH = 64
Images = UInt8[np.ndarray, "b h w 3"]


def reconstruction_function(
  run: Run, sharding: Sharding
) -> Callable[[Images], Images]:
  """decode(mode of encode(images)) by a run's first stage, in equal batches.

  Args:
    run: of an autoencoder, or of a denoiser with a first stage.

  Raises:
    ConfigError: only a decoder was trained.
  """
  task = run.experiment.task
  if is_autoencoder(task):
    check_encoder(task)
    model, params = task.autoencoder, run.trained(sharding)
  else:
    model, params = task.first_stage, run.frozen(sharding).first_stage

  @jax.jit
  def reconstruct_batch(params, images: jax.Array) -> jax.Array:
    latents = model.apply(params, to_float(images), method="encode").mode()
    return to_uint8(model.apply(params, latents, method="decode"))

  def reconstruct(images: Images) -> Images:
    parts = []
    for begin in range(0, len(images), BATCH):
      part = padded(images[begin : begin + BATCH], min(BATCH, len(images)))
      found = processes.gather(
        reconstruct_batch(params, sharding.distribute(part))
      )
      parts.append(found[: len(images) - begin])
    return np.concatenate(parts)

  return reconstruct


def padded(
  rows: Shaped[np.ndarray, "b ..."], count: int
) -> Shaped[np.ndarray, "c ..."]:
  """`count` rows; the last one is repeated where there are fewer."""
  return rows[np.minimum(np.arange(count), len(rows) - 1)]
