"""What a sampler's steps take, and the compiled function that follows them."""

import functools
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from ldm_jax.diffusion import samplers
from ldm_jax.diffusion.guidance import (
  Guidance,
  with_classifier_guidance,
)
from ldm_jax.diffusion.prediction import Denoiser, with_thresholding
from ldm_jax.diffusion.schedule import append_dims
from ldm_jax.latent_diffusion import LatentDiffusion, Parameters
from ldm_jax.nn.conditioners.embedders import Condition, merge
from ldm_jax.nn.conditioners.source_image import SourceImage
from ldm_jax.nn.encoder_unet import EncoderUNet
from ldm_jax.nn.operators.choice import operators_of
from ldm_jax.runtime.devices.activation_sharding import constrain_activations
from ldm_jax.runtime.devices.sharding import Sharding
from ldm_jax.runtime.program_cache import shared_by_value
from ldm_jax.runtime.stored_programs import StoredProgram
from ldm_jax.sampling.initial_latents import InitialState
from ldm_jax.sampling.inpainting import KnownRegion
from ldm_jax.sampling.sampling_config import (
  Conditioning,
  GenerationInputs,
  PromptVariant,
  SamplingConfig,
)
from ldm_jax.sampling.tiling import Crop, windowed


class StepInputs(NamedTuple):
  """The inputs of a piece of the program, all of them traced.

  Attributes:
    negative: None where guidance is off.
    known: the region that inpainting keeps, or None.
    classifier: its parameters, the classes [b], and its scale; or None.
    others: conditions that are composed with `positive`.
    weights: [b k] of `positive` and the others; None without others.
    image: the condition without the image that is edited, and the guidance
      towards it; None where that guidance is off.
  """

  positive: Condition
  negative: Condition | None
  guidance: Guidance
  threshold: tuple[float, float] | None
  known: KnownRegion | None
  classifier: tuple[Any, Array, float] | None = None
  others: tuple[Condition, ...] = ()
  weights: Array | None = None
  image: tuple[Condition, Guidance] | None = None


def weighted_condition(
  model: LatentDiffusion, params: Parameters, side: Conditioning
) -> Condition:
  """The condition, with the weights of its prompts if it has any.

  z = z_empty + weight (z - z_empty), as ComfyUI computes it. Each text encoder
  has weights of its own, for its features of the context.
  """
  if not side.weights:
    return model.condition(params, side.raw, side.is_null)
  parts = []
  for part in model.conditioners:
    encode = functools.partial(model.condition_part, params, part.input_key)
    condition = encode(side.raw, side.is_null)
    weights = side.weights.get(part.input_key)
    if weights is not None and condition.context is not None:
      origin = encode(side.empty, side.is_null).context
      wide = getattr(part, "feature_weights", lambda w: w[..., None])
      context = origin + wide(weights) * (condition.context - origin)
      condition = condition.replace(context=context)
    parts.append(condition)
  return merge(parts)


class Batch(NamedTuple):
  """What the conditions of a batch depend on besides its prompts.

  Attributes:
    params: of the model.
    classifier: of a classifier that guides, or None.
    places: of the batch's images in `inputs`.
  """

  params: Parameters
  classifier: Any
  config: SamplingConfig
  inputs: GenerationInputs
  start: InitialState
  places: np.ndarray


def step_inputs(
  model: LatentDiffusion,
  sharding: Sharding,
  encode: Callable[[Parameters, Conditioning], Condition],
  batch: Batch,
  variant: PromptVariant,
) -> StepInputs:
  """The encoded conditions of a batch, and the rest of a step.

  Args:
    encode: `weighted_condition` of the model, compiled.
    variant: of the batch's images.
  """
  distribute, config, inputs = sharding.distribute, batch.config, batch.inputs
  start = batch.start
  names = model.unconditional_keys

  def condition_of(side: Conditioning, null: Collection[str] = ()) -> Condition:
    side = distribute(side).with_images(start.images or {}, null)
    condition = encode(batch.params, side)
    control = np.tile(np.float32(config.control), (len(start.keys), 1))
    return condition.replace(
      hint=start.hint,
      control=None if start.hint is None else distribute(control),
    )

  condition, *others = map(condition_of, variant.positives)
  if inputs.end is not None:
    fraction = distribute(inputs.fractions[batch.places].astype(np.float32))
    mix = lambda a, b: a + append_dims(fraction, a) * (b - a)
    end = condition_of(inputs.end.rows(batch.places))
    condition = jax.tree.map(mix, condition, end)
  is_guided = config.guidance.needs_unconditional() or bool(others)
  if model.embeds_guidance:
    scale = np.full(len(start.keys), config.guidance.scale, np.float32)
    condition = condition.replace(guidance=distribute(scale))
  classifier = weights = negative = image = None
  if inputs.labels is not None:
    labels = distribute(inputs.labels[batch.places].astype(np.int32))
    classifier = batch.classifier, labels, config.classifier_scale
  if others:
    weights = distribute(np.float32(variant.weights))
  # Guidance keeps the image to edit on both sides; a third has none.
  source = model.find_conditioner(SourceImage)
  away = [name for name in names if source is None or name != source.input_key]
  if config.image_guidance.needs_unconditional() and len(away) < len(names):
    image = condition_of(variant.negative, names), config.image_guidance
  if (away and is_guided) or image is not None:
    negative = condition_of(variant.negative, away)
  return StepInputs(
    condition,
    negative,
    config.guidance,
    config.threshold,
    start.known,
    classifier,
    tuple(others),
    weights,
    image,
  )


def step_denoiser(
  model: LatentDiffusion,
  classifier: EncoderUNet | None,
  params: Parameters,
  step: StepInputs,
  size: tuple[int, int],
  window: int | None,
) -> tuple[Denoiser, samplers.ReplaceKnown]:
  """The guided denoiser of a step, and what restores its known region.

  Args:
    size: height and width of the latents.
    window: side of windows in latents, or None.
  """

  def make(crop: Crop = lambda array: array) -> Denoiser:
    """The guided denoiser, with conditions cut to a window by `crop`."""
    cut = lambda condition: condition.replace(
      concat=jax.tree.map(crop, condition.concat),
      hint=jax.tree.map(crop, condition.hint),
    )
    positive = cut(step.positive)
    if step.negative is None:
      return model.denoiser(params, positive)
    negative, guidance = cut(step.negative), step.guidance
    if not step.others and step.image is None:
      return model.guided_denoiser(params, negative, positive, guidance)
    positives = [positive, *map(cut, step.others)]
    image = step.image and (cut(step.image[0]), step.image[1])
    return model.composed_denoiser(
      params, negative, positives, step.weights, guidance, image
    )

  denoise = make() if window is None else windowed(make, size, window)
  if step.classifier is not None:
    variables, labels, scale = step.classifier
    logits = functools.partial(classifier.apply, variables)
    denoise = with_classifier_guidance(denoise, logits, labels, scale)
  if step.threshold is not None:
    denoise = with_thresholding(denoise, *step.threshold)
  return denoise, _keep_all if step.known is None else step.known.mend


def _keep_all(x: Array, level: Any) -> Array:
  """x: no region is known."""
  return x


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
  size = state.shape[2:4]
  denoise, mend = step_denoiser(model, classifier, params, step, size, window)
  state = samplers.run(denoise, state, piece, keys, mend)
  return state, piece.is_active.sum()


@shared_by_value
def programs(
  model: LatentDiffusion, classifier: EncoderUNet | None, sharding: Sharding
) -> tuple[Callable, Callable]:
  """Jitted `weighted_condition` and `run_piece`; equal models share them."""
  condition = functools.partial(weighted_condition, model)
  piece = functools.partial(run_piece, model, classifier)
  jitted = jax.jit(constrain_activations(condition, sharding))
  jitted_piece = jax.jit(
    constrain_activations(piece, sharding),
    static_argnames="window",
    donate_argnums=1,
  )
  context = operators_of(model, classifier)
  stored = functools.partial(StoredProgram, context=context)
  return (
    stored(jitted, ("condition", model, sharding)),
    stored(jitted_piece, ("sampler", model, classifier, sharding)),
  )
