"""Requests that differ along a few axes, and their images as one sheet."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from ldm_jax.errors import ConfigError
from ldm_jax.runtime import image_files
from ldm_jax.sampling.request import GenerationRequest, Number

_AXES = ("prompt", "sampler", "steps", "guidance")


def request_grid(
  request: GenerationRequest,
  *,
  prompts: Sequence[str] = (),
  samplers: Sequence[str] = (),
  steps: Sequence[int] = (),
  guidance: Sequence[Number] = (),
) -> list[GenerationRequest]:
  """Requests of one image each for every combination, the last axis first.

  All have one seed. An empty axis keeps the request's own value.

  Raises:
    ConfigError: a value cannot be used, or the request has several prompts.
  """
  if len(request.prompts) > 1:
    raise ConfigError("a grid starts from one prompt; give more as an axis")
  request = dataclasses.replace(request.with_drawn_seed(), num=1)
  axes = dict(zip(_AXES, (prompts, samplers, steps, guidance), strict=True))
  axes = {name: values for name, values in axes.items() if values}
  return [
    dataclasses.replace(request, **dict(zip(axes, values, strict=True)))
    for values in itertools.product(*axes.values())
  ]


def labelled_sheet(
  requests: Sequence[GenerationRequest],
  images: Sequence[UInt8[np.ndarray, "h w 3"]],
) -> UInt8[np.ndarray, "H W 3"]:
  """Images with what their requests differ in below them.

  A row has the values of the last field that differs.

  Raises:
    ConfigError: the images differ in size.
  """
  if len({image.shape for image in images}) > 1:
    raise ConfigError("the images of a sheet must have one size")
  differing = {
    name: values
    for name in _AXES
    if len(values := dict.fromkeys(getattr(r, name) for r in requests)) > 1
  }
  labels = [
    ", ".join(_label(name, getattr(each, name)) for name in differing)
    for each in requests
  ]
  columns = len(list(differing.values())[-1]) if differing else 1
  return image_files.image_grid(np.stack(list(images)), labels, columns)


def _label(name: str, value: Any) -> str:
  if name == "steps":
    return f"{value} steps"
  if name == "guidance" and isinstance(value, Number):
    return f"guidance {value:g}"
  return str(value)


def prompt_matrix(text: str) -> list[str]:
  """All of "a", "a, b", "a, c" and "a, b, c" of "a | b | c".

  As AUTOMATIC1111's prompt matrix: the first part is in every prompt, each
  other one with and without.
  """
  first, *others = (part.strip() for part in text.split("|"))
  return [
    ", ".join([first, *chosen])
    for count in range(len(others) + 1)
    for chosen in itertools.combinations(others, count)
  ]
