"""The request and the result of a comparison of first stages."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from ldm_jax.errors import ConfigError
from ldm_jax.evaluation.request import EvaluationRequest
from ldm_jax.fields.arguments import check_request
from ldm_jax.runtime.json_values import json_value


@dataclasses.dataclass(frozen=True)
class FirstStageRequest:
  """Which first stages are compared, on which images.

  Attributes:
    models: runs of either stage, folders of an autoencoder or of a model in
      diffusers' layout, single files, or repositories.
    images: a folder of images; None takes mosaics of the built-in data.
    out: a folder for sheet.png, table.md and first_stages.json.
    size: side of the images in pixels, a multiple of what every model divides
      by; the central square of an image is resized to it.
    num: the first `num` images; for the Frechet distances 2,048 or more. Images
      and their reconstructions are kept in memory, 0.4 MB each at 256 pixels.
    batch: images that are encoded and decoded at a time.
    rounds: of timing, of which the median is taken.
    inception: file of Inception's weights, for rFID and iFID.
    dino: folder or file of DINOv2, for rFDD.
    lpips_trunk, lpips_heads: files of VGG's and of LPIPS's weights; together.
    resize: mode of resizing for Inception; see `EvaluationRequest`.
    allow_small: allow Frechet distances of fewer than 2,048 images.
    trust: top-level packages whose classes a run's config may import.
  """

  models: tuple[str, ...]
  images: str | None = None
  out: str | None = None
  size: int = 256
  num: int = 64
  batch: int = 8
  rounds: int = 5
  inception: str | None = None
  dino: str | None = None
  lpips_trunk: str | None = None
  lpips_heads: str | None = None
  resize: Literal["legacy", "clean", "both"] = "both"
  allow_small: bool = False
  trust: tuple[str, ...] = ()

  def __post_init__(self):
    check_request(self)
    if not self.models:
      raise ConfigError("no model to compare; give one or more")
    for name in ("size", "num", "batch", "rounds"):
      if getattr(self, name) < 1:
        raise ConfigError(
          f"{name} is {getattr(self, name)}; expected 1 or more (--{name})"
        )
    self.networks().check_count(self.num)

  def networks(self) -> EvaluationRequest:
    """The same as a request for the networks of metrics."""
    return EvaluationRequest(
      self.images or "",
      num=self.num,
      inception=self.inception,
      dino=self.dino,
      lpips_trunk=self.lpips_trunk,
      lpips_heads=self.lpips_heads,
      resize=self.resize,
      allow_small=self.allow_small,
    )


@dataclasses.dataclass(frozen=True)
class FirstStageMetrics:
  """What was measured of one first stage.

  Attributes:
    name, path: of the model.
    metrics: a number by name; the columns of the table.
    details: "latents" by channel, and "patterns" one by one.
  """

  name: str
  path: str
  metrics: Mapping[str, int | float]
  details: Mapping[str, Any]

  def to_json(self) -> dict[str, Any]:
    """Everything as JSON values."""
    return {
      "model": self.name,
      "path": self.path,
      **{name: json_value(value) for name, value in self.metrics.items()},
      "details": _json_tree(self.details),
    }


@dataclasses.dataclass(frozen=True)
class FirstStageResult:
  """A comparison of first stages.

  Attributes:
    settings: images and how they were measured, by name.
    stages: the metrics of each, in the order of the request.
    files: paths written.
  """

  settings: Mapping[str, Any]
  stages: tuple[FirstStageMetrics, ...]
  files: tuple[str, ...] = ()

  def to_json(self) -> dict[str, Any]:
    """Settings and all stages as JSON values."""
    return {
      **_json_tree(self.settings),
      "first_stages": [stage.to_json() for stage in self.stages],
    }

  def table(self) -> str:
    """Markdown: a row for each first stage, a column for each metric."""
    columns = list(dict.fromkeys(n for s in self.stages for n in s.metrics))
    rows = [["model", *columns], ["---"] + ["---:"] * len(columns)]
    for stage in self.stages:
      cells = [_cell(stage.metrics.get(name)) for name in columns]
      rows.append([stage.name.replace("|", "\\|"), *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(value: int | float | None) -> str:
  return "" if value is None else f"{value:.4g}"


def _json_tree(value: Any) -> Any:
  if isinstance(value, Mapping):
    return {name: _json_tree(each) for name, each in value.items()}
  if isinstance(value, list | tuple):
    return [_json_tree(each) for each in value]
  return json_value(value)
