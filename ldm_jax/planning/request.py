"""The request and the result of a plan."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from ldm_jax.config import Experiment
from ldm_jax.errors import ConfigError
from ldm_jax.fields.arguments import check_request


@dataclasses.dataclass(frozen=True)
class PlanRequest:
  """What is compiled, and for which devices.

  Attributes:
    config: an experiment, or its file or name.
    overrides: values by dotted path, such as {"mesh.fsdp": "4"}.
    first_stage: of a denoiser: a config or a run of an autoencoder.
    topology: of a TPU, which may be absent, such as "v5e:4x4"; None plans for
      the present devices.
    slices: number of slices of that topology, 1 or more.
    batch: images of a step over all devices; None takes the config's.
    sampler_steps: steps of a guided DDIM sampler, planned in place of a
      training step; None plans training.
    largest: estimate the largest batch that fits, which compiles once or twice
      more.
    prepared: plan a training step that reads what `ldm-jax prepare` stores:
      "latents", or "texts", latents and outputs of frozen text encoders. None
      has images and prompts encoded in the step.
  """

  config: str | Experiment
  overrides: Mapping[str, str] = dataclasses.field(default_factory=dict)
  first_stage: str | None = None
  topology: str | None = None
  slices: int = 1
  batch: int | None = None
  sampler_steps: int | None = None
  largest: bool = False
  prepared: Literal["latents", "texts"] | None = None

  def __post_init__(self):
    check_request(self)
    for name, flag in (
      ("slices", "slices"),
      ("batch", "batch"),
      ("sampler_steps", "sample"),
    ):
      value = getattr(self, name)
      if value is not None and value < 1:
        raise ConfigError(f"{name} must be 1 or more, got {value} (--{flag})")
    if self.prepared is not None and self.sampler_steps is not None:
      raise ConfigError(
        "a sampler reads no prepared latents; leave prepared out (--prepared)"
      )


@dataclasses.dataclass(frozen=True)
class LargestBatch:
  """The largest batch that fits, or None where it cannot be estimated."""

  images: int | None
  basis: str


@dataclasses.dataclass(frozen=True)
class PlanResult:
  """The needs of one step; bytes are those of each device.

  Attributes:
    config: its name, or the task's type.
    sampler_steps: as requested.
    topology: of the TPU, or the kind of the present devices.
    slices, devices, mesh: their number, and the mesh's axes with their sizes.
    batch, images_per_device: images of a step.
    flops, flops_per_device: floating-point operations of the function, counted
      before compilation.
    arguments, temporaries, total: bytes; total is the peak.
    compiled_flops: XLA's count for one device, loop bodies once; 0 if unknown.
    collectives: kind -> (number, bytes); None if they cannot be counted.
    collectives_of: the program they are counted in: the "compiled" one or,
      where its compiler cannot print it, the one that XLA's SPMD partitioner
      makes for as many CPU devices ("partitioned"), whose gathers may be of
      float32 where a TPU's are of bfloat16; None without collectives.
    compile_seconds: duration of the compilation.
    refusal: the compiler's reason for giving up, or None.
    parts: bytes of the arguments by what they are.
    fits: whether a device has the memory; None if that is unknown.
    memory_limit: bytes that the program may use of a device, or None.
    largest_batch: if requested.
  """

  config: str
  sampler_steps: int | None
  topology: str
  slices: int
  devices: int
  mesh: dict[str, int]
  batch: int
  images_per_device: float
  flops: int
  flops_per_device: float
  arguments: int
  temporaries: int
  total: int
  compiled_flops: float
  collectives: dict[str, tuple[int, int]] | None
  compile_seconds: float
  refusal: str | None
  parts: dict[str, int]
  fits: bool | None
  memory_limit: float | None
  largest_batch: LargestBatch | None = None
  collectives_of: Literal["compiled", "partitioned"] | None = None

  def to_json(self) -> dict[str, Any]:
    """All fields as JSON values; largest_batch only if it was requested."""
    values = dataclasses.asdict(self)
    largest = values.pop("largest_batch")
    if largest is not None:
      values["largest_batch"] = largest["images"]
      values["largest_batch_basis"] = largest["basis"]
    return values
