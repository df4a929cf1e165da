"""User-defined metrics.

A metric is a function, or an instance of a class without arguments:

  def brightness(samples, reference):
    \"\"\"Mean grey level of both sets.\"\"\"
    mean = lambda images: float(np.mean([image.mean() for image in images]))
    found = {"brightness": mean(samples)}
    if reference is not None:
      found["brightness_reference"] = mean(reference)
    return found

It is given to `evaluate` as an object or by name:

  evaluate(EvaluationRequest("samples", "real", metrics=(brightness,)))
  ldm-jax evaluate samples real --metric mine.metrics:brightness --trust mine
"""

import importlib
import inspect
import numbers
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from ldm_jax.errors import ConfigError
from ldm_jax.nn.encoders.inception import Features


@runtime_checkable
class Images(Protocol):
  """A sequence of images, uint8 [h w 3], read as they are indexed."""

  def __len__(self) -> int:
    """Number of images."""

  def __getitem__(self, i: int) -> UInt8[np.ndarray, "h w 3"]:
    """The i-th image; raises IndexError past the last."""

  def blocks(self, size: int) -> Iterator[UInt8[np.ndarray, "b h w 3"]]:
    """All images in blocks of at most `size` images of one shape."""

  def captions(self) -> list[str]:
    """Their captions; empty if one has none."""


@runtime_checkable
class Metric(Protocol):
  """Numbers by name, of samples and what they are compared with.

  An attribute `inputs` says what the metric takes. Without it, or with
  "images", `samples` and `reference` are `Images`. With "features" they are
  `ldm_jax.nn.encoders.inception.Features` (arrays with a row for each image:
  `pooled` [n 2048], `spatial`, `logits`, ...); the metric is then called once
  for each resizing mode, which is appended to its names, and needs the
  `inception` weights.

  `reference` is None where there is none, or where it is a file of statistics.
  For pairs (`paired`, reconstructions) reference[i] belongs to samples[i].
  """

  def __call__(
    self, samples: Images | Features, reference: Images | Features | None
  ) -> Mapping[str, float]:
    """The numbers; names must not be those of another metric."""


def load_metrics(
  metrics: Sequence[str | Callable], trust: Sequence[str]
) -> list[Metric]:
  """Metrics by object or by name "package.module:Name"; classes instantiated.

  Raises:
    ConfigError: a name is malformed, its package is not in `trust`, or there is
      no such object.
  """
  found = []
  for metric in metrics:
    if isinstance(metric, str):
      metric = _import(metric, trust)
    if inspect.isclass(metric):
      metric = metric()
    inputs = getattr(metric, "inputs", "images")
    if not callable(metric) or inputs not in ("images", "features"):
      raise ConfigError(
        f"{metric!r} is not a metric: it must be callable with (samples, "
        "reference), and its inputs, if given, be 'images' or 'features'"
      )
    found.append(metric)
  return found


def takes_features(metric: Metric) -> bool:
  """Whether a metric takes Inception's features; else images."""
  return getattr(metric, "inputs", "images") == "features"


def apply_metric(
  metric: Metric,
  samples: Images | Features,
  reference: Images | Features | None,
  suffix: str = "",
) -> dict[str, float]:
  """The numbers of one metric, `suffix` appended to their names.

  Raises:
    ConfigError: it returned something other than numbers by name.
  """
  found = metric(samples, reference)
  is_valid = isinstance(found, Mapping) and all(
    isinstance(name, str) and isinstance(value, numbers.Real | np.ndarray)
    for name, value in found.items()
  )
  if not is_valid:
    raise ConfigError(
      f"the metric {metric!r} returned {type(found).__name__}; expected a "
      "dictionary of numbers by name"
    )
  return {name + suffix: float(value) for name, value in found.items()}


def _import(name: str, trust: Sequence[str]) -> Callable:
  module, colon, attribute = name.partition(":")
  if not (module and colon and attribute):
    raise ConfigError(f"metric {name!r} must be named as package.module:Name")
  package = module.partition(".")[0]
  if package not in trust and "*" not in trust:
    raise ConfigError(
      f"metric {name!r} would import the package {package!r}; allow it by "
      f"trust (--trust {package})"
    )
  try:
    return getattr(importlib.import_module(module), attribute)
  except (ImportError, AttributeError) as error:
    raise ConfigError(f"metric {name!r} cannot be imported: {error}") from error
