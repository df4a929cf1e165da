"""What to run: an Experiment, a tree of frozen dataclasses."""

import contextlib
import dataclasses
import os
import runpy
import sys
from collections.abc import Iterator
from typing import Any

from ldm_jax import config_files
from ldm_jax.config_tree import node_from_json
from ldm_jax.data.glyphs.source import Glyphs
from ldm_jax.data.sources.cached_latents import CachedLatents
from ldm_jax.data.sources.folder import Folder
from ldm_jax.data.sources.mix import Mix
from ldm_jax.data.sources.neighbours import Neighbours
from ldm_jax.data.sources.shards import Shards
from ldm_jax.data.sources.tfds_source import TfdsSource
from ldm_jax.data.text.tokenizers import TokenizerConfig
from ldm_jax.data.transforms.augment import Augment
from ldm_jax.data.transforms.degradation import Degradation
from ldm_jax.data.transforms.layout_tokens import LayoutTokens
from ldm_jax.data.transforms.masks import Masks
from ldm_jax.diffusion.loss import DenoisingLoss
from ldm_jax.diffusion.schedule import Schedule
from ldm_jax.errors import ConfigError
from ldm_jax.latent_diffusion import LatentDiffusion
from ldm_jax.nn.autoencoder import Autoencoder, ConvStack, PixelSpace
from ldm_jax.nn.bottleneck import GaussianBottleneck, VectorQuantizer
from ldm_jax.nn.conditioners.clip_embedder import ClipEmbedder
from ldm_jax.nn.conditioners.embedders import (
  ClassEmbedder,
  LayoutEmbedder,
  SizeEmbedder,
  TextEmbedder,
)
from ldm_jax.nn.conditioners.spatial import (
  DepthMap,
  LowResolution,
  MaskedImage,
  NeighbourEmbeddings,
  SegmentationEmbedder,
)
from ldm_jax.nn.discriminator import PatchDiscriminator
from ldm_jax.nn.encoder_unet import EncoderUNet
from ldm_jax.nn.encoders.clip_text import ClipText
from ldm_jax.nn.encoders.lpips import LPIPS
from ldm_jax.nn.encoders.text_encoder import TextEncoder
from ldm_jax.nn.lora import LoRA
from ldm_jax.nn.unet import AttentionPlan, UNet
from ldm_jax.runtime.checkpointing.policy import CheckpointPolicy
from ldm_jax.runtime.devices.sharding import MeshShape
from ldm_jax.runtime.optimizer import Optimizer
from ldm_jax.training.autoencoder import AutoencoderTask
from ldm_jax.training.classifier import ClassifierTask
from ldm_jax.training.denoiser import DenoiserTask


@dataclasses.dataclass(frozen=True)
class Data:
  """What is learned from, and what is held out to judge by.

  Attributes:
    augment: needed where images differ in size.
    validation_augment: the same for what is held out, always centred and
      never mirrored; None takes `augment`.
    tokenizer: for captions, or None to leave them out.
    views: what is made of every example for conditioners, in this order.
    latents: a folder of `python -m ldm_jax.cli.prepare` that stands for
      `source` in stage two: latents that need not be encoded again.
    buckets: shapes, height and width, that whole batches are cut to in place
      of `augment.size` twice, each picture to the one nearest in ratio; see
      `data.buckets.shapes`. What is held out stays square.
    batch: images per update, over all devices and slices.
    held_out: how many of the validation source's first images are measured.
    threads: that read and decode.
    max_bad_fraction: how much of the source may be pictures that cannot be
      read. The next good one stands in for each; bad_samples.jsonl of the run
      lists them.
  """

  source: Glyphs | Folder | TfdsSource | Shards | Mix | Neighbours
  validation: Glyphs | Folder | TfdsSource | Shards | Mix | Neighbours
  augment: Augment | None = None
  validation_augment: Augment | None = None
  tokenizer: TokenizerConfig | None = None
  transforms: tuple[Masks | LayoutTokens | Degradation, ...] = ()
  latents: str = ""
  buckets: tuple[tuple[int, int], ...] = ()
  batch: int = 64
  held_out: int = 64
  threads: int = 8
  max_bad_fraction: float = 1e-3

  def __post_init__(self):
    if min(self.batch, self.held_out) < 1 or self.threads < 0:
      raise ValueError(
        "data needs batch >= 1, held_out >= 1 and threads >= 0, got "
        f"batch={self.batch} held_out={self.held_out} threads={self.threads}"
      )
    if not 0 <= self.max_bad_fraction <= 1:
      raise ValueError(
        f"max_bad_fraction={self.max_bad_fraction} must be from 0 to 1"
      )

  @property
  def learned(self) -> tuple[Any, Augment | None]:
    """What is learned from, and how it is cut."""
    if self.latents:
      return CachedLatents(self.latents), None
    return self.source, self.augment

  @property
  def centred(self) -> Augment | None:
    """How held-out images are cut."""
    return self.validation_augment or self.augment


@dataclasses.dataclass(frozen=True)
class Reports:
  """How often a run speaks, in steps, and how many pictures it shows.

  Attributes:
    previews_every: 0 shows none, not even at the end.
    hang_seconds: how long a step or its data may keep a run waiting before
      every thread's stack is shown; three median steps if that is longer. 0
      never shows them.
    abort_seconds: how long until the run ends with exit code 70, or None.
  """

  every: int = 50
  previews_every: int = 1000
  previews: int = 16
  hang_seconds: float = 30.0
  abort_seconds: float | None = None


@dataclasses.dataclass(frozen=True)
class PerceptualWeights:
  """Files LPIPS is read from; "random" is a choice that must be written out.

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
    steps: updates in all.
    seed: of initialisation, noise and the order of the data.
    perceptual: where stage one's LPIPS comes from.
    first_stage: the run folder whose autoencoder stage two freezes.
    first_stage_digest: of its parameters; filled in when the run starts.
    start: a run of stage two, or foreign weights, whose U-Net and conditioners
      stage two begins from; read once. Its first stage serves too, unless
      `first_stage` names another.
    text_encoders: folders of the towers that a frozen ClipEmbedder listens
      through, in their order, such as model/text_encoder; read once, when the
      run starts.
  """

  task: AutoencoderTask | DenoiserTask | ClassifierTask
  data: Data
  steps: int
  seed: int = 0
  mesh: MeshShape = MeshShape()
  checkpoints: CheckpointPolicy = CheckpointPolicy()
  reports: Reports = Reports()
  perceptual: PerceptualWeights = PerceptualWeights()
  first_stage: str = ""
  first_stage_digest: str = ""
  start: str = ""
  text_encoders: tuple[str, ...] = ()


# The classes a config may name, and the only ones its JSON can bring to life.
CLASSES = {
  kind.__name__: kind
  for kind in (
    Experiment,
    Data,
    Reports,
    PerceptualWeights,
    MeshShape,
    CheckpointPolicy,
    Optimizer,
    Glyphs,
    Folder,
    TfdsSource,
    Shards,
    Mix,
    Neighbours,
    Augment,
    TokenizerConfig,
    Masks,
    LayoutTokens,
    Degradation,
    AutoencoderTask,
    DenoiserTask,
    ClassifierTask,
    EncoderUNet,
    LoRA,
    DenoisingLoss,
    Schedule,
    LatentDiffusion,
    Autoencoder,
    PixelSpace,
    ConvStack,
    GaussianBottleneck,
    VectorQuantizer,
    UNet,
    AttentionPlan,
    ClassEmbedder,
    TextEmbedder,
    TextEncoder,
    ClipEmbedder,
    ClipText,
    SizeEmbedder,
    LayoutEmbedder,
    SegmentationEmbedder,
    DepthMap,
    MaskedImage,
    LowResolution,
    NeighbourEmbeddings,
    PatchDiscriminator,
    LPIPS,
  )
}


def load(path: str) -> Experiment:
  """The Experiment that `get_config()` of a Python file returns.

  Args:
    path: the file, or the name of a config that comes with ldm_jax, such as
      "sd/sd1". It may import the files next to it by their names.

  Raises:
    ConfigError: no such file or function, or it fails, or returns another
      thing.
  """
  path = config_files.find(path)
  try:
    with _beside(path):
      names = runpy.run_path(path)
  except (SyntaxError, ImportError, ValueError, TypeError) as error:
    raise ConfigError(f"{path}: {error}") from error
  if "get_config" not in names:
    raise ConfigError(f"{path} has no function get_config()")
  try:
    experiment = names["get_config"]()
  except (ImportError, ValueError, TypeError) as error:
    raise ConfigError(f"{path}: {error}") from error
  if not isinstance(experiment, Experiment):
    raise ConfigError(
      f"get_config() of {path} must return an ldm_jax.config.Experiment, got "
      f"{type(experiment).__name__}"
    )
  return experiment


@contextlib.contextmanager
def _beside(path: str) -> Iterator[None]:
  """Imports find the files beside a config, and are forgotten afterwards."""
  folder, before = os.path.dirname(os.path.abspath(path)), set(sys.modules)
  sys.path.insert(0, folder)
  try:
    yield
  finally:
    sys.path.remove(folder)
    for name in set(sys.modules) - before:
      file = getattr(sys.modules[name], "__file__", None) or ""
      if os.path.dirname(file) == folder:
        del sys.modules[name]


def from_json(tree: Any) -> Experiment:
  """The Experiment that `nodes.to_json` wrote.

  Raises:
    ConfigError: it names other classes or fields than ours.
  """
  experiment = node_from_json(tree, CLASSES, "config")
  if not isinstance(experiment, Experiment):
    raise ConfigError("the JSON of a config must be that of an Experiment")
  return experiment
