"""The request and the result of a preparation."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from ldm_jax.config import Experiment
from ldm_jax.errors import ConfigError
from ldm_jax.fields.arguments import check_request


@dataclasses.dataclass(frozen=True)
class PrepareRequest:
  """A data set to downscale and pack, or to encode.

  Attributes:
    config: an experiment, or the path or name of its config; its
      `data.source` is prepared.
    out: the folder to write; an interrupted preparation is resumed there.
    overrides: fields of the config to set, by dotted path.
    first_stage: a run of stage one: its latents are cached. None writes images.
    size: pixels of the shorter side; smaller images stay as they are. None
      takes what the config's smallest crop needs. Images only.
    format: "jpg" of quality 95, or lossless "png". Images only.
    copies: of every example, each with its own random crop and mirroring, 1 or
      more. Latents only.
    batch: images encoded at a time. Latents only.
    dtype: of the cached moments and texts. Latents only.
    texts: store the outputs of the config's frozen text conditioners for the
      captions too, so that they need not run in training. Latents only.
    threads: that read images.
    trust: top-level packages whose classes the first stage's run may name.

  Raises:
    ConfigError: a number is out of range.
  """

  config: Experiment | str
  out: str
  overrides: Mapping[str, str] = dataclasses.field(default_factory=dict)
  first_stage: str | None = None
  size: int | None = None
  format: Literal["jpg", "png"] = "jpg"
  copies: int = 1
  batch: int = 64
  dtype: Literal["float32", "float16"] = "float16"
  texts: bool = False
  threads: int = 8
  trust: tuple[str, ...] = ()

  def __post_init__(self):
    check_request(self)
    for name in ("copies", "batch", "threads"):
      if getattr(self, name) < 1:
        raise ConfigError(
          f"{name} must be 1 or more, got {getattr(self, name)}"
        )
    if self.texts and self.first_stage is None:
      raise ConfigError(
        "texts are stored next to latents; give first_stage (--first_stage)"
      )
    if self.size is not None and self.size < 1:
      raise ConfigError(f"size must be 1 or more, got {self.size}")


@dataclasses.dataclass(frozen=True)
class PrepareResult:
  """A prepared folder.

  Attributes:
    folder: of a `Shards` source (images) or of `data.latents`.
    kind: "images" or "latents".
    count: examples in it.
  """

  folder: str
  kind: Literal["images", "latents"]
  count: int
