"""The request and the result of an evaluation."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

from ldm_jax.errors import ConfigError
from ldm_jax.fields.arguments import check_request
from ldm_jax.runtime.json_values import json_value

MIN_FRECHET_COUNT = 2048  # images, as many as features


@dataclasses.dataclass(frozen=True)
class EvaluationRequest:
  """What is measured, with which networks.

  Attributes:
    samples: a run folder, or a folder of images. A run of a denoiser generates
      an image for the conditions of each held-out example; a run of an
      autoencoder reconstructs the examples.
    reference: a folder of as many images, or a file of statistics (.npz, .pt);
      None compares a run with its held-out examples.
    out: a folder for a run's images, contact sheets and evaluation.json;
      needed for a run. An interrupted call resumes there.
    num: the first `num` images, 1 or more; None takes all, of a run 1,000.
    inception: file of Inception's weights, for FID, sFID, KID, IS, precision,
      recall, density and coverage.
    clip: folder of a CLIPModel of transformers, for CLIP score and CMMD.
    dino: folder of a Dinov2Model of transformers, or a file of its authors, for
      FDD, the Frechet distance of DINOv2's features.
    lpips_trunk, lpips_heads: files of VGG's and of LPIPS's weights; together.
    resize: mode of resizing for Inception: "legacy" (TensorFlow 1, as ADM and
      torch-fidelity), "clean" (clean-fid) or "both".
    paired: compare images of the same file name in both folders.
    write_statistics: file to write the samples' statistics to, for later use
      as a reference.
    allow_small: allow Frechet distances of fewer than 2,048 images.
    train_images: number of training images that are searched for near copies of
      samples; 0 for none.
    metrics: further metrics; see `custom_metrics.Metric`.
    trust: top-level packages whose metrics, and whose classes in a run's
      config, may be imported.
    steps, sampler, guidance, eta, seed: how a denoiser's run generates: steps
      of the sampler, 1 or more; its name (None: ddim); scale of classifier-free
      guidance, where 1 is none; noise of DDIM (None: the sampler's default).
    unconditional: whether conditions take their unconditional values.
  """

  samples: str
  reference: str | None = None
  out: str | None = None
  num: int | None = None
  inception: str | None = None
  clip: str | None = None
  dino: str | None = None
  lpips_trunk: str | None = None
  lpips_heads: str | None = None
  resize: Literal["legacy", "clean", "both"] = "both"
  paired: bool = False
  write_statistics: str | None = None
  allow_small: bool = False
  train_images: int = 10_000
  metrics: tuple[str | Callable, ...] = ()
  trust: tuple[str, ...] = ()
  steps: int = 50
  sampler: str | None = None
  guidance: float = 1.0
  eta: float | None = None
  seed: int = 0
  unconditional: bool = False

  def __post_init__(self):
    check_request(self)
    if self.resize not in ("legacy", "clean", "both"):
      raise ConfigError(
        f"resize is {self.resize!r}; it must be legacy, clean or both"
      )
    if bool(self.lpips_trunk) != bool(self.lpips_heads):
      raise ConfigError(
        "lpips_trunk and lpips_heads go together (--lpips_trunk, --lpips_heads)"
      )
    if self.write_statistics and (not self.inception or self.resize == "both"):
      raise ConfigError(
        "statistics are of Inception's features in one resizing mode; give "
        "--inception and --resize=legacy or --resize=clean"
      )
    if self.steps < 1 or self.train_images < 0:
      raise ConfigError(
        f"steps is {self.steps} and train_images {self.train_images}; "
        "expected 1 or more, and 0 or more"
      )

  def check_count(self, count: int) -> None:
    """Raises ConfigError if Frechet distances of `count` images are biased."""
    is_small = count < MIN_FRECHET_COUNT
    if (self.inception or self.dino) and is_small and not self.allow_small:
      raise ConfigError(
        f"Frechet distances of {count} images are biased upwards and cannot be "
        f"compared with published ones of 50,000; give {MIN_FRECHET_COUNT} or "
        "more, or allow_small (--allow_small)"
      )


@dataclasses.dataclass(frozen=True)
class EvaluationResult:
  """What was measured.

  Attributes:
    settings: what was compared and how, by name.
    metrics: a number by name, or "unavailable".
    files: paths written, in the order of writing.
  """

  settings: dict[str, Any]
  metrics: dict[str, float | str]
  files: tuple[str, ...] = ()

  def to_json(self) -> dict[str, Any]:
    """Settings and metrics as one dictionary of JSON values."""
    values = self.settings | self.metrics
    return {name: json_value(value) for name, value in values.items()}

  def table(self) -> str:
    """Settings and metrics as lines of a name and a value."""
    values = self.to_json()
    width = max(map(len, values))
    return "\n".join(f"{n:{width}}  {value}" for n, value in values.items())
