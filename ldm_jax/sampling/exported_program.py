"""A whole guided sampler as one program that needs none of this code."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jaxtyping import Array, UInt8

from ldm_jax.diffusion import samplers
from ldm_jax.diffusion.guidance import ClassifierFreeGuidance
from ldm_jax.latent_diffusion import LatentDiffusion, Parameters
from ldm_jax.pixels import to_uint8
from ldm_jax.sampling.initial_latents import image_root
from ldm_jax.sampling.sampling_config import Conditioning, SamplingConfig

PLATFORMS = ("cpu", "cuda", "tpu")


class ExportedSampler(NamedTuple):
  """A sampler that left its model.

  Attributes:
    program: StableHLO, serialized by jax.export. Called with (weights,
      (positive, negative), seed, first, guidance) it draws images first,
      first + 1, ... of a seed, as many as the arrays of either side have
      rows. A side is {"raw": arrays, "is_null": bool [b]}, both by what each
      conditioner reads; guidance is scale, rescale, start and stop.
    weights: arrays by path; empty if they are inside the program.
  """

  program: bytes
  weights: dict[str, np.ndarray]


def export_sampler(
  model: LatentDiffusion,
  params: Parameters,
  settings: SamplingConfig,
  said: Conditioning,
  is_inside: bool = False,
) -> ExportedSampler:
  """Exports (what is said, a seed, guidance) -> uint8 images.

  Size, sampler and steps are fixed; the batch is not.

  Args:
    said: an example of what the conditioners hear.
    is_inside: weights are constants of the program.
  """
  leaves, tree = jax.tree_util.tree_flatten_with_path(params)
  names = [
    jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves
  ]
  weights = {
    name: np.asarray(leaf)
    for name, (_, leaf) in zip(names, leaves, strict=True)
  }

  def draw(
    weights: Mapping[str, Array | np.ndarray],
    sides: tuple[dict, dict],
    seed: Array,
    first: Array,
    guidance: Array,
  ) -> UInt8[Array, "b H W 3"]:
    held = [weights[name] for name in names]
    params = jax.tree.unflatten(tree, held)
    return generate_traced(
      model, params, settings, sides, (seed, first, guidance)
    )

  (batch,) = export.symbolic_shape("b")
  rows = lambda x: jax.ShapeDtypeStruct(
    (batch, *np.shape(x)[1:]), np.asarray(x).dtype
  )
  side = jax.tree.map(rows, {"raw": said.raw, "is_null": said.is_null})
  shapes = {
    name: jax.ShapeDtypeStruct(array.shape, array.dtype)
    for name, array in weights.items()
  }
  told = (
    (side, side),
    jax.ShapeDtypeStruct((), np.uint32),
    jax.ShapeDtypeStruct((), np.int32),
    jax.ShapeDtypeStruct((4,), np.float32),
  )
  if is_inside:
    inside = lambda _, *told: draw(weights, *told)
    shapes, kept = {}, {}
  else:
    inside, kept = draw, weights
  made = export.export(jax.jit(inside), platforms=PLATFORMS)(shapes, *told)
  return ExportedSampler(bytes(made.serialize()), kept)


def generate_traced(
  model: LatentDiffusion,
  params: Parameters,
  settings: SamplingConfig,
  sides: tuple[dict, dict],
  told: tuple[Array, Array, Array],
) -> UInt8[Array, "b H W 3"]:
  """What `SamplingEngine.draw` does, in one piece that can be traced.

  Args:
    sides: positive and negative conditioning; see `ExportedSampler`.
    told: the seed, the first image's index, and guidance's four numbers.
  """
  seed, first, scales = told
  hear = lambda side: model.condition(params, side["raw"], side["is_null"])
  positive, negative = map(hear, sides)
  if any(part.has_unconditional for part in model.conditioners):
    guidance = ClassifierFreeGuidance(*(scales[i] for i in range(4)))
    denoise = model.guided_denoiser(params, negative, positive, guidance)
  else:
    denoise = model.denoiser(params, positive)
  count = jax.tree.leaves(sides[0])[0].shape[0]
  keys = samplers.image_keys(
    image_root(seed), first + jnp.arange(count, dtype=jnp.int32)
  )
  shape = model.first_stage.latent_shape(settings.height, settings.width)
  plan: Any = settings.sampler_config.plan(model.schedule)
  noise = samplers.initial_noise(keys, shape) * plan.init_noise_sigma
  latents = samplers.sample(denoise, noise, plan.table, keys)
  return to_uint8(model.decode(params, latents))
