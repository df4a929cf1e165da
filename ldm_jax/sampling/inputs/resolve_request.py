"""A request with a model's defaults: the arrays and numbers of an engine."""

import dataclasses

import numpy as np

from ldm_jax.diffusion.guidance import ClassifierFreeGuidance
from ldm_jax.diffusion.samplers import SamplerConfig
from ldm_jax.diffusion.samplers.sampler_names import (
  parse_sampler_name,
  parse_timestep_spacing,
)
from ldm_jax.diffusion.torch_noise import torch_normal
from ldm_jax.errors import ConfigError
from ldm_jax.loaded_model import LoadedModel
from ldm_jax.nn.conditioners.conditioner import ConcatConditioner
from ldm_jax.nn.conditioners.embedders import ClassEmbedder
from ldm_jax.nn.conditioners.spatial import DepthMap
from ldm_jax.sampling.conditioning import ConditionInputs
from ldm_jax.sampling.inputs.condition_inputs import (
  read_depth,
  read_layout,
  read_neighbours,
  read_segmap,
)
from ldm_jax.sampling.inputs.files import read_array, read_floats
from ldm_jax.sampling.inputs.image_inputs import RequestImages, image_guidance
from ldm_jax.sampling.request import GenerationRequest, Number
from ldm_jax.sampling.sampling_config import (
  GenerationInputs,
  SamplingConfig,
)

IMAGE_STRENGTH = 0.8  # of image to image without a mask, as in diffusers
NOISE_LEVEL = 20  # of upscaling, as in diffusers


def check_model(request: GenerationRequest, loaded: LoadedModel) -> None:
  """Raises ConfigError for a U-Net whose inputs no request can give."""
  concat = [
    part
    for part in loaded.model.conditioners
    if isinstance(part, ConcatConditioner)
  ]
  if request.invert and concat:
    raise ConfigError(
      "invert finds the noise of an image, but this model also reads "
      f"{concat[0].input_key!r}; use a model of text or classes"
    )
  channels = loaded.model.first_stage.latent_channels
  is_known = concat or loaded.model.find_conditioner(DepthMap)
  if loaded.unet_channels not in (None, channels) and not is_known:
    raise ConfigError(
      f"this model's U-Net reads {loaded.unet_channels} channels, {channels} "
      "of them latents, and is not of the inpainting, upscaling, depth or "
      "editing kind; use the U-Net alone from Python (ldm_jax.from_pretrained)"
    )


def prompt_lists(request: GenerationRequest) -> tuple[list[str], str | None]:
  """The prompt of every image, none if there are none; and the last prompt of
  an interpolation between prompts."""
  prompts = list(request.prompts)
  if request.interpolate is None:
    return [text for text in prompts for _ in range(request.num)], None
  end = prompts[1] if len(prompts) == 2 else None
  count = request.interpolate if request.index is None else 1
  return prompts[:1] * count, end


def sampling_config(
  request: GenerationRequest, loaded: LoadedModel, images: RequestImages
) -> SamplingConfig:
  """How to sample.

  Raises:
    ValueError: a value is not possible with this model.
  """
  guidance = loaded.guidance if request.guidance is None else request.guidance
  of_image = image_guidance(request, loaded)
  if isinstance(guidance, Number):
    if request.compat == "diffusers":
      guidance = max(guidance, 1.0)  # which is without guidance there
      if guidance == 1 or of_image.scale < 1:
        guidance, of_image = 1.0, of_image._replace(scale=1.0)
    options = request.guidance_rescale, *request.guidance_interval
    # Of floats alone, since a whole number would compile again.
    guidance = ClassifierFreeGuidance(*map(float, (guidance, *options)))
  height, width = images.size(loaded) or (loaded.height, loaded.width)
  strength = request.strength
  if strength is None:
    parts = loaded.model.conditioners
    is_concat = any(isinstance(part, ConcatConditioner) for part in parts)
    is_all = images.mask is not None or is_concat or images.image is None
    strength = 1.0 if is_all else IMAGE_STRENGTH
  noise_level = request.noise_level
  if noise_level is None:
    noise_level = NOISE_LEVEL
  elif loaded.model.noise_augmentation_schedule is None:
    raise ConfigError(
      "this model is not an upscaler with noise augmentation; leave "
      "noise_level out"
    )
  return SamplingConfig(
    height=height if request.height is None else request.height,
    width=width if request.width is None else request.width,
    sampler_config=resolve_sampler(request, loaded.sampler_config),
    guidance=guidance,
    seed=request.seed,
    strength=strength,
    threshold=request.threshold,
    window=request.window,
    tile=request.tile,
    noise_level=noise_level,
    classifier_scale=request.classifier_scale,
    control=(request.control_scale, *request.control_interval),
    image_guidance=of_image,
  )


def resolve_sampler(
  request: GenerationRequest, own: SamplerConfig
) -> SamplerConfig:
  """The sampler: the model's own, except for what the request sets.

  Raises:
    ValueError: there is none of that name, or it has no such option.
  """
  sampler, spacing = own.sampler, None
  if isinstance(request.sampler, str):
    sampler, spacing = parse_sampler_name(request.sampler)
  elif request.sampler is not None:
    sampler = request.sampler  # a user-defined function
  kept = SamplerConfig(sampler=sampler)
  if sampler == own.sampler:
    kept = own
    spacing = spacing or own.timestep_spacing
  elif request.compat is not None:
    kept = own.from_config(sampler)
    spacing = spacing or kept.timestep_spacing
  if request.timestep_spacing is not None:
    spacing = parse_timestep_spacing(request.timestep_spacing, sampler)
  final_time = own.final_time if request.compat is None else kept.final_time
  steps = len(request.times or request.sigmas) or request.steps
  return SamplerConfig(
    steps=steps,
    sampler=sampler,
    timestep_spacing=spacing,
    eta=kept.eta if request.eta is None else request.eta,
    order=kept.order if request.order is None else request.order,
    final_time=final_time,
    times=tuple(request.times),
    sigmas=tuple(request.sigmas),
    compat=request.compat,
    steps_offset=own.steps_offset,
    base_spacing=kept.base_spacing,
    options=kept.options,
    shift=own.shift if request.shift is None else request.shift,
    shift_terminal=own.shift_terminal,
  )


def generation_inputs(
  request: GenerationRequest,
  config: SamplingConfig,
  loaded: LoadedModel,
  images: RequestImages,
) -> GenerationInputs:
  """Noise, images and labels; without the end of an interpolation.

  Raises:
    ValueError: a file cannot be used, or does not fit the model.
  """
  prompts, end = prompt_lists(request)
  count, fractions = len(prompts) or request.num, None
  first = request.index or 0
  if request.interpolate is not None:
    count, first = request.interpolate, 0
    fractions = np.linspace(0, 1, count)
    if request.index is not None:
      fractions = fractions[request.index : request.index + 1]
    count = len(fractions)
  noises = first + count
  if fractions is not None:
    noises = 2 if end is None else 1  # the ends
  labels = None
  if request.classifier is not None and request.class_label is not None:
    labels = np.full(count, request.class_label)
  replay = request.replay
  return GenerationInputs(
    count=count,
    batch=request.batch if replay is None else replay.batch,
    initial_noise=_initial_noise(request, config, loaded, noises),
    output="latents" if request.output == "latents" else "images",
    image_inputs=images.inputs(config, loaded, count),
    variation=request.variation,
    fractions=fractions,
    labels=labels,
    first=first,
    batch_row=None if replay is None else replay.row,
  )


def _initial_noise(
  request: GenerationRequest,
  config: SamplingConfig,
  loaded: LoadedModel,
  count: int,
) -> np.ndarray | None:
  """`count` x_T of unit variance from a file, an array or torch's generator;
  None where they are JAX's."""
  if request.initial_latents is not None:
    array = read_floats(
      request.initial_latents,
      "initial_latents",
      4,
      "(images, height, width, channels)",
    )
    is_part = request.index is not None and len(array) > count
    return array[:count] if is_part else array
  if request.rng != "torch":
    return None
  if config.sampler_config.is_random:
    raise ConfigError(
      "rng torch gives the first latents only, and this sampler draws more "
      "noise; use one that adds none, or eta 0"
    )
  shape = loaded.model.first_stage.latent_shape(config.height, config.width)
  height, width, channels = shape
  total = count
  if request.replay is not None and request.interpolate is None:
    total = max(count, request.replay.count)
  noise = torch_normal(config.seed, (total, channels, height, width))
  return noise.transpose(0, 2, 3, 1)[:count]


def condition_inputs(
  request: GenerationRequest,
  config: SamplingConfig,
  loaded: LoadedModel,
  count: int,
) -> ConditionInputs:
  """The conditions of `count` images; of an interpolation between prompts
  those of its end follow, so that both get the same length.

  Raises:
    ValueError: a file cannot be used.
  """
  prompts, end = prompt_lists(request)
  if end is not None:
    prompts = prompts + [end] * count
  size = config.height, config.width
  reads_class = request.classifier is None or loaded.model.find_conditioner(
    ClassEmbedder
  )
  read = lambda reader, value, *more: (
    None if value is None else reader(value, *more)
  )
  return ConditionInputs(
    prompts,
    [request.negative_prompt] * max(count, len(prompts)),
    request.class_label if reads_class else None,
    *size,
    request.emphasis,
    read(read_segmap, request.segmap, *size),
    read(read_layout, request.layout),
    read(read_neighbours, request.neighbours),
    read(read_depth, request.depth, *size),
    1 if request.replay is None else request.replay.chunks,
    {k: read_array(v, k) for k, v in (request.conditions or {}).items()},
  )


def with_model_defaults(
  request: GenerationRequest, config: SamplingConfig
) -> GenerationRequest:
  """The request with every default of the model written out."""
  sampler, guidance = config.sampler_config, config.guidance
  is_standard = isinstance(guidance, ClassifierFreeGuidance)
  return dataclasses.replace(
    request,
    height=config.height,
    width=config.width,
    sampler=sampler.sampler,
    timestep_spacing=sampler.timestep_spacing,
    steps=sampler.steps,
    order=sampler.order,
    guidance=guidance.scale if is_standard else guidance,
    strength=None if request.image is None else config.strength,
    image_guidance_scale=_written_scale(request, config),
  )


def _written_scale(
  request: GenerationRequest, config: SamplingConfig
) -> Number | None:
  """Of guidance towards an image; None for models that have none."""
  scale = config.image_guidance.scale
  is_default = request.image_guidance_scale is None and scale == 1
  return None if is_default else scale
