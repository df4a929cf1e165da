"""A whole guided sampler as one program that runs without this package."""

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
from ldm_jax.nn.operators.choice import operators
from ldm_jax.pixels import to_uint8
from ldm_jax.sampling.initial_latents import image_root
from ldm_jax.sampling.sampling_config import Conditioning, SamplingConfig

PLATFORMS = ("cpu", "cuda", "tpu")


class ExportedSampler(NamedTuple):
  """A sampler exported from its model.

  Attributes:
    program: StableHLO, serialized by jax.export. Called with (weights,
      (positive, negative), seed, first, guidance) it generates images first,
      first + 1, ... of a seed, as many as the arrays of either side have
      rows. The seed is its upper and its lower 32 bits. A side is
      {"raw": arrays, "is_null": bool [b]}, both by the name that each
      conditioner reads; guidance is scale, rescale, start, stop.
    weights: arrays by path; empty if they are inside the program.
  """

  program: bytes
  weights: dict[str, np.ndarray]


def export_sampler(
  model: LatentDiffusion,
  params: Parameters,
  config: SamplingConfig,
  conditioning: Conditioning,
  is_inside: bool = False,
) -> ExportedSampler:
  """Exports (conditions, a seed, guidance) -> uint8 images.

  Size, sampler and steps are fixed; the batch is not.

  Args:
    conditioning: an example of the conditioners' inputs.
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

  def generate(
    weights: Mapping[str, Array | np.ndarray],
    sides: tuple[dict, dict],
    seed: Array,
    first: Array,
    guidance: Array,
  ) -> UInt8[Array, "b H W 3"]:
    params = jax.tree.unflatten(tree, [weights[name] for name in names])
    return generate_traced(model, params, config, sides, seed, first, guidance)

  (batch,) = export.symbolic_shape("b")
  rows = lambda x: jax.ShapeDtypeStruct(
    (batch, *np.shape(x)[1:]), np.asarray(x).dtype
  )
  example = {"raw": conditioning.raw, "is_null": conditioning.is_null}
  side = jax.tree.map(rows, example)
  shapes = {
    name: jax.ShapeDtypeStruct(array.shape, array.dtype)
    for name, array in weights.items()
  }
  arguments = (
    (side, side),
    jax.ShapeDtypeStruct((2,), np.uint32),
    jax.ShapeDtypeStruct((), np.int32),
    jax.ShapeDtypeStruct((4,), np.float32),
  )
  if is_inside:
    inside = lambda _, *arguments: generate(weights, *arguments)
    shapes, kept = {}, {}
  else:
    inside, kept = generate, weights
  with operators("xla"):  # the program runs on every platform
    exported = export.export(jax.jit(inside), platforms=PLATFORMS)(
      shapes, *arguments
    )
  return ExportedSampler(bytes(exported.serialize()), kept)


def generate_traced(
  model: LatentDiffusion,
  params: Parameters,
  config: SamplingConfig,
  sides: tuple[dict, dict],
  seed: Array,
  first: Array,
  guidance: Array,
) -> UInt8[Array, "b H W 3"]:
  """`SamplingEngine.generate` as one function that can be traced.

  Args:
    sides: positive and negative conditioning; see `ExportedSampler`.
    first: index of the first image.
    guidance: its four numbers; see `ClassifierFreeGuidance`.
  """
  encode = lambda side: model.condition(params, side["raw"], side["is_null"])
  positive, negative = map(encode, sides)
  count = jax.tree.leaves(sides[0])[0].shape[0]
  if model.embeds_guidance:
    positive = positive.replace(guidance=jnp.full(count, guidance[0]))
    denoise = model.denoiser(params, positive)
  elif any(part.has_unconditional for part in model.conditioners):
    scales = ClassifierFreeGuidance(*(guidance[i] for i in range(4)))
    denoise = model.guided_denoiser(params, negative, positive, scales)
  else:
    denoise = model.denoiser(params, positive)
  keys = samplers.image_keys(
    image_root(seed), first + jnp.arange(count, dtype=jnp.int32)
  )
  shape = model.first_stage.latent_shape(config.height, config.width)
  size = shape[0], shape[1]
  plan: Any = config.sampler_config.plan(model.schedule, latent_size=size)
  noise = samplers.initial_noise(keys, shape) * plan.init_noise_sigma
  latents = samplers.sample(denoise, noise, plan.table, keys)
  return to_uint8(model.decode(params, latents))
