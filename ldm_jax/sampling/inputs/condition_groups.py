"""The conditions of a request's images, grouped by the shapes they have."""

import dataclasses
import logging
from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from ldm_jax.data.text.clip_prompts import ClipPrompts
from ldm_jax.errors import ConfigError
from ldm_jax.loaded_model import LoadedModel
from ldm_jax.sampling.conditioning import ConditionInputs, encode_variant
from ldm_jax.sampling.inputs.prompt_inputs import (
  ImagePrompts,
  check_negative,
  image_prompts,
  warn_of_unread_syntax,
)
from ldm_jax.sampling.request import GenerationRequest
from ldm_jax.sampling.sampling_config import (
  ConditionGroup,
  PromptVariant,
  SamplingConfig,
)

logger = logging.getLogger(__name__)


def condition_groups(
  request: GenerationRequest,
  config: SamplingConfig,
  loaded: LoadedModel,
  inputs: ConditionInputs,
) -> list[ConditionGroup]:
  """The encoded conditions of all images.

  Images are in one group if each side of their prompts has as many chunks, and
  the prompts as many parts (AND), the same schedule ([a:b:0.5]) and the same
  LoRAs.

  Args:
    inputs: of all images; see `condition_inputs`.

  Raises:
    ConfigError: the model cannot fulfil the request.
  """
  texts, negatives = inputs.prompts, inputs.negative_prompts
  read = request.emphasis
  warn_of_unread_syntax(texts, [each or "" for each in negatives], read)
  check_negative(request.negative_prompt)
  if request.negative_prompt:
    _warn_of_negative(loaded.model.embeds_guidance, config.needs_negative)
  steps = config.sampler_config.steps
  pairs = zip(texts or [""] * inputs.count, negatives, strict=True)
  pairs = list(pairs)
  plans = {pair: image_prompts(*pair, read, steps) for pair in set(pairs)}
  if not config.needs_negative:
    plans = {pair: plan.without_negative() for pair, plan in plans.items()}
  _check_composition(request, plans, loaded.model.embeds_guidance)
  places: dict[Hashable, list[int]] = {}
  for i, pair in enumerate(pairs):
    # The two ends of an interpolation are mixed, and so of one length.
    is_mixed = request.interpolate is not None
    key = None if is_mixed else _shapes(loaded, plans[pair])
    places.setdefault(key, []).append(i)
  return [
    _group(loaded, inputs, rows, [plans[pairs[i]] for i in rows])
    for rows in places.values()
  ]


def _warn_of_negative(embeds_guidance: bool, is_needed: bool) -> None:
  """Warns of a negative prompt that nothing reads."""
  leave = "leave negative_prompt out (--negative_prompt)"
  if embeds_guidance:
    logger.warning(
      "the negative prompt has no effect: this model's network embeds the "
      f"scale of guidance; {leave}"
    )
  elif not is_needed:
    logger.warning(
      "the negative prompt has no effect at guidance 1; give a larger one "
      f"(--guidance), or {leave}"
    )


def _check_composition(
  request: GenerationRequest,
  plans: Mapping[tuple, ImagePrompts],
  embeds_guidance: bool,
) -> None:
  """Raises ConfigError for prompts of several parts where one is needed."""
  loras = {plan.loras for plan in plans.values()}
  if request.interpolate is not None and len(loras) > 1:
    raise ConfigError(
      "the two prompts of an interpolation must name the same LoRAs, with the "
      "same scales"
    )
  if all(plan.is_plain for plan in plans.values()):
    return
  if embeds_guidance:
    raise ConfigError(
      "this model's U-Net embeds the scale of guidance, and takes prompts "
      "without AND, [a:b:0.5] and [a|b]; leave them out"
    )
  for name in ("interpolate", "invert"):
    if getattr(request, name):
      raise ConfigError(
        f"{name} takes prompts without AND, [a:b:0.5] and [a|b]; leave one of "
        "them out"
      )


def _shapes(loaded: LoadedModel, plan: ImagePrompts) -> Hashable:
  """What determines the shapes of an image's conditions, and its LoRAs."""
  tokenizer = loaded.tokenizer
  count = lambda text: 1
  if isinstance(tokenizer, ClipPrompts):
    count = lambda text: tokenizer.count_chunks(text or "")
  chunks = tuple(
    (tuple(count(part.prompt) for part in each.parts), count(each.negative))
    for each in plan.variants
  )
  return plan.schedule, chunks, plan.loras


def _group(
  loaded: LoadedModel,
  inputs: ConditionInputs,
  rows: Sequence[int],
  plans: Sequence[ImagePrompts],
) -> ConditionGroup:
  """The encoded conditions of the images `rows`."""

  def encode(place: int) -> PromptVariant:
    """The conditions of the images' variants at one place of their plans."""
    variants = [plan.variants[place] for plan in plans]
    each_part = [
      dataclasses.replace(
        inputs,
        prompts=[each.parts[k].prompt for each in variants]
        if inputs.prompts
        else [],
        negative_prompts=[each.negative for each in variants],
      )
      for k in range(len(variants[0].parts))
    ]
    weights = None
    if len(each_part) > 1:
      weights = np.float32(
        [[part.weight for part in each.parts] for each in variants]
      )
    return encode_variant(loaded, each_part, weights)

  count = len(plans[0].variants)
  return ConditionGroup(
    np.asarray(rows),
    tuple(map(encode, range(count))),
    plans[0].schedule,
    plans[0].loras,
  )
