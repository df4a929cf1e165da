"""What the engine compiles: conditions, and a piece of a sampler's program."""

import functools
from typing import Any, NamedTuple

import jax
from jaxtyping import Array

from ldm_jax.diffusion import samplers
from ldm_jax.diffusion.guidance import (
  ClassifierFreeGuidance,
  with_classifier_guidance,
)
from ldm_jax.diffusion.prediction import Denoiser, with_thresholding
from ldm_jax.latent_diffusion import LatentDiffusion, Parameters
from ldm_jax.nn.conditioners.embedders import Condition
from ldm_jax.nn.encoder_unet import EncoderUNet
from ldm_jax.sampling.inpainting import KnownRegion
from ldm_jax.sampling.sampling_config import Conditioning
from ldm_jax.sampling.tiling import Crop, windowed


class StepInputs(NamedTuple):
  """What a piece of the program takes; all of it is traced.

  Attributes:
    negative: None where guidance is off.
    known: the region that inpainting keeps, or None.
    classifier: its parameters, the classes [b], and its scale; or None.
  """

  positive: Condition
  negative: Condition | None
  guidance: ClassifierFreeGuidance
  threshold: tuple[float, float] | None
  known: KnownRegion | None
  classifier: tuple[Any, Array, float] | None = None


def weighted_condition(
  model: LatentDiffusion, params: Parameters, side: Conditioning
) -> Condition:
  """The condition, with the weights of its prompts if it has any.

  z = z_empty + weight (z - z_empty), as ComfyUI computes it.
  """
  encode = lambda raw: model.condition(params, raw, side.is_null)
  condition = encode(side.raw)
  if side.weights is None:
    return condition
  empty = encode(side.empty).context
  weights = side.weights[..., None]
  context = empty + weights * (condition.context - empty)
  return condition.replace(context=context)


def run_piece(
  model: LatentDiffusion,
  classifier: EncoderUNet | None,
  params: Parameters,
  state: Array,
  piece: samplers.Row,
  keys: Array,
  step: StepInputs,
  *,
  window: int | None,
) -> tuple[Array, Array]:
  """Follows the active rows of a piece; also returns how many there were.

  Args:
    state: registers of the sampler, [r b h w c].
    keys: one per image.
    window: side of windows in latents, or None; the one static argument.
  """

  def make(crop: Crop = lambda array: array) -> Denoiser:
    cut = lambda condition: condition.replace(
      concat=jax.tree.map(crop, condition.concat),
      hint=jax.tree.map(crop, condition.hint),
    )
    positive = cut(step.positive)
    if step.negative is None:
      return model.denoiser(params, positive)
    return model.guided_denoiser(
      params, cut(step.negative), positive, step.guidance
    )

  size = state.shape[2:4]
  denoise = make() if window is None else windowed(make, size, window)
  if step.classifier is not None:
    variables, labels, scale = step.classifier
    logits = functools.partial(classifier.apply, variables)
    denoise = with_classifier_guidance(denoise, logits, labels, scale)
  if step.threshold is not None:
    denoise = with_thresholding(denoise, *step.threshold)
  mend = (lambda x, level: x) if step.known is None else step.known.mend
  state = samplers.run(denoise, state, piece, keys, mend)
  return state, piece.is_active.sum()
