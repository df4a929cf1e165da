"""What to run: an Experiment, a tree of frozen dataclasses."""

import dataclasses
import json
import re
from collections.abc import Collection, Mapping
from typing import Any

from ldm_jax import config_files, config_json, config_tree
from ldm_jax.data.batching import Source
from ldm_jax.data.collate import Transform
from ldm_jax.data.sources.cached_latents import CachedLatents
from ldm_jax.data.text.tokenizers import TokenizerConfig
from ldm_jax.data.transforms.augment import Augment
from ldm_jax.errors import ConfigError
from ldm_jax.fields import checks
from ldm_jax.fields.limits import (
  Count,
  Fraction,
  Natural,
  NonNegative,
  Positive,
  Seed,
  check_limits,
)
from ldm_jax.runtime.checkpointing.policy import CheckpointPolicy
from ldm_jax.runtime.devices.sharding import MeshShape
from ldm_jax.runtime.monitoring.trackers import TensorBoard, Tracker

__all__ = [
  "Data",
  "Experiment",
  "PerceptualWeights",
  "Reports",
  "check",
  "check_readable",
  "from_json",
  "load",
  "override",
  "packages",
  "resolve",
]


@dataclasses.dataclass(frozen=True)
class Data:
  """Training and validation examples.

  Attributes:
    source: a data.protocols.Source: `len(source)` and `source[i]`, a dict of
      arrays; from data/sources/ or user-defined.
    validation: the same, for examples that are held out.
    augment: random crop and mirroring; needed where images differ in size.
    validation_augment: the same for held-out images, always centred and never
      mirrored; None takes `augment`.
    tokenizer: for captions, or None to leave them out.
    t5_tokenizer: the same of a `T5Embedder`, in a folder, next to `tokenizer`.
    transforms: each a data.protocols.Transform, applied to every example in
      this order to make arrays for conditioners.
    latents: a folder written by `ldm-jax prepare --first_stage` that replaces
      `source` in stage two: latents that need not be encoded again.
    buckets: shapes (height, width) that whole batches are cropped to instead
      of `augment.size` squared, each image to the nearest in aspect ratio; see
      `data.buckets.shapes`. Held-out images stay square.
    batch: images per update, over all devices and accumulation slices.
    held_out: how many of the first validation images are measured.
    threads: that read and decode.
    max_bad_fraction: of the source that may be unreadable images, each of them
      replaced by the next good one and listed in the run's bad_samples.jsonl.
  """

  source: Source
  validation: Source
  augment: Augment | None = None
  validation_augment: Augment | None = None
  tokenizer: TokenizerConfig | None = None
  transforms: tuple[Transform, ...] = ()
  latents: str = ""
  buckets: tuple[tuple[Count, Count], ...] = ()
  batch: Count = 64
  held_out: Count = 64
  threads: Natural = 8
  max_bad_fraction: Fraction = 1e-3
  t5_tokenizer: TokenizerConfig | None = None

  def __post_init__(self):
    check_limits(self)

  @property
  def training(self) -> tuple[Source, Augment | None]:
    """The source that is trained on, and its crop."""
    if self.latents:
      return CachedLatents(self.latents), None
    return self.source, self.augment

  @property
  def centred(self) -> Augment | None:
    """How held-out images are cropped."""
    return self.validation_augment or self.augment


@dataclasses.dataclass(frozen=True)
class Reports:
  """How often a run logs metrics, in steps, and how it shows previews.

  Attributes:
    every: steps between lines of metrics.jsonl.
    previews_every: steps between previews; 0 for none, not even at the end.
    previews: images in a preview.
    hang_seconds: how long a step or its data may take before the stacks of all
      threads are logged, at least three median steps; 0 disables this.
    abort_seconds: how long until the run ends with exit code 70, or None.
  """

  every: Count = 50
  previews_every: Natural = 1000
  previews: Natural = 16
  hang_seconds: NonNegative = 30.0
  abort_seconds: Positive | None = None

  def __post_init__(self):
    check_limits(self)


@dataclasses.dataclass(frozen=True)
class PerceptualWeights:
  """Files LPIPS is read from; "random" weights must be chosen explicitly.

  Attributes:
    trunk: torchvision's vgg16-397923af.pth, or "random".
    heads: the lpips package's weights/v0.1/vgg.pth, or "random".
  """

  trunk: str = "vgg16-397923af.pth"
  heads: str = "vgg.pth"


@dataclasses.dataclass(frozen=True)
class Experiment:
  """One run of one stage.

  Attributes:
    task: what a training step is (training.compiled_steps.Task):
      AutoencoderTask, DenoiserTask, ClassifierTask or a user-defined one.
    data: training and validation examples.
    steps: updates in all.
    seed: of initialisation, noise and the order of the data.
    mesh: how devices are arranged.
    checkpoints: when to save, and what to keep.
    reports: when to log and to preview.
    perceptual: the weight files of stage one's LPIPS.
    first_stage: the run folder whose autoencoder stage two freezes.
    first_stage_digest: of its parameters; filled in when the run starts.
    start: a run or published weights to begin from; read once. Stage one takes
      the autoencoder, stage two the U-Net and conditioners, and the first stage
      too, unless `first_stage` names another.
    text_encoders: folders (of a T5 also a file) of the text encoders of frozen
      conditioners, in their order; read once, when the run starts.
    trackers: from runtime.monitoring.trackers or user-defined; they receive
      metrics and previews in addition to metrics.jsonl and previews/.
  """

  task: Any
  data: Data
  steps: Count
  seed: Seed = 0
  mesh: MeshShape = MeshShape()
  checkpoints: CheckpointPolicy = CheckpointPolicy()
  reports: Reports = Reports()
  perceptual: PerceptualWeights = PerceptualWeights()
  first_stage: str = ""
  first_stage_digest: str = ""
  start: str = ""
  text_encoders: tuple[str, ...] = ()
  trackers: tuple[Tracker, ...] = (TensorBoard(),)

  def __post_init__(self):
    check_limits(self)


def load(name: str) -> Experiment:
  """The Experiment that `get_config()` of a Python file returns.

  The file may import the files next to it by their names.

  Args:
    name: the file, or the name of a config that comes with ldm_jax, such as
      "sd/sd1".

  Raises:
    ConfigError: there is no such file or function, it fails, or it does not
      return an Experiment.
  """
  path = config_files.find(name)
  experiment = config_files.run(path)
  if not isinstance(experiment, Experiment):
    raise ConfigError(
      f"get_config() of {path} must return an ldm_jax.config.Experiment, got "
      f"{type(experiment).__name__}"
    )
  try:
    check(experiment)
  except ConfigError as error:
    raise ConfigError(f"{path}: {error}") from error
  return experiment


def resolve(
  config: Experiment | str, overrides: Mapping[str, str] | None = None
) -> Experiment:
  """An Experiment, or the one of a config file, with fields set by path.

  Raises:
    ConfigError: as `load` and `override` do, or a field of it is of a wrong
      type or outside its limits.
  """
  experiment = load(config) if isinstance(config, str) else config
  check(experiment)
  return override(experiment, overrides or {})


def check(experiment: Experiment) -> None:
  """Checks the type and the limits of every field; see `fields.checks`.

  Raises:
    ConfigError: a field has a wrong value; it names the dotted path.
  """
  if not isinstance(experiment, Experiment):
    raise ConfigError(
      "needs an ldm_jax.config.Experiment, or the name of a config file, got "
      f"{type(experiment).__name__}"
    )
  checks.check_tree(experiment)
  needed = ("init", "step", "measure", "preview", "frozen_shapes")
  task = experiment.task
  if not all(callable(getattr(task, name, None)) for name in needed):
    raise ConfigError(
      f"config.task: needs a dataclass with the functions {', '.join(needed)}, "
      f"got {type(task).__name__}"
    )


def override(experiment: Any, texts: Mapping[str, str]) -> Any:
  """`experiment` with the field at every dotted path set; see `config_tree`.

  The text for an optional node may be the name of a class: one of this package,
  such as LoRA, or package.module:Class.
  """

  def find_class(text: str, path: str) -> type | None:
    is_name = re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", text)
    if text in config_json.CLASSES or is_name:
      return config_json.find_class(text, path, trust=("*",))
    return None

  return config_tree.override(experiment, texts, find_class)


def packages(experiment: Experiment) -> tuple[str, ...]:
  """Top-level packages of the experiment's own classes."""
  kinds = [kind for kind, _ in config_json.foreign_classes(experiment)]
  return tuple(sorted({kind.__module__.partition(".")[0] for kind in kinds}))


def check_readable(experiment: Experiment) -> None:
  """Raises ConfigError if the run's config.json could not be read back.

  This ensures that every run can be resumed and sampled.
  """
  check(experiment)
  config_json.check_importable(experiment)
  tree = json.loads(json.dumps(config_json.to_json(experiment)))
  try:
    again = from_json(tree, packages(experiment))
  except ConfigError as error:
    raise ConfigError(
      f"a saved run could not be read back: {error}; move its classes to an "
      "importable module of your own"
    ) from error
  if odd := config_json.differences(experiment, again):
    raise ConfigError(f"a saved run could not be read back: {odd[0]}")


def from_json(tree: Any, trust: Collection[str] = ()) -> Experiment:
  """The Experiment that `config_json.to_json` wrote.

  Args:
    trust: top-level packages whose classes may be imported.

  Raises:
    ConfigError: a class or a field is unknown, or a package not trusted.
  """
  try:
    experiment = config_json.from_json(tree, "config", trust)
  except RecursionError:
    raise ConfigError("the JSON of a config is nested too deeply") from None
  if not isinstance(experiment, Experiment):
    raise ConfigError("the JSON of a config must be that of an Experiment")
  check(experiment)
  return experiment
