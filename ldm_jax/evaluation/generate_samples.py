"""Samples or reconstructions of a run's held-out examples, kept in a folder."""

import json
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from ldm_jax.data import batching
from ldm_jax.diffusion.guidance import ClassifierFreeGuidance
from ldm_jax.diffusion.samplers import SamplerConfig
from ldm_jax.diffusion.samplers.sampler_names import parse_sampler_name
from ldm_jax.errors import ConfigError
from ldm_jax.evaluation.condition_sampler import ConditionSampler
from ldm_jax.evaluation.image_sets import Images, ImageSet, folder_images
from ldm_jax.evaluation.reconstruct import BATCH, reconstruction_function
from ldm_jax.evaluation.request import EvaluationRequest
from ldm_jax.files.atomic_writes import replace_file
from ldm_jax.files.strict_json import read_object
from ldm_jax.run import Run, is_autoencoder
from ldm_jax.runtime import image_files
from ldm_jax.runtime.devices import processes
from ldm_jax.runtime.devices.sharding import Sharding
from ldm_jax.runtime.monitoring.progress import Progress
from ldm_jax.sampling import SamplingConfig
from ldm_jax.training.denoiser import DenoiserTask

DEFAULT_COUNT = 1000  # images, unless the request names a number
SETTINGS = "asked.json"  # a file name of the format


class SampleWriter:
  """Generates the images of a request that its folder does not hold yet.

  Attributes:
    run: the run.
    held_out: the examples.
    count: number of images.
    is_reconstruction: whether the examples are reconstructed (a run of an
      autoencoder), or images are generated for their conditions.
    settings: how, by name.
  """

  def __init__(self, request: EvaluationRequest, sharding: Sharding):
    """Opens the run; compiles nothing yet.

    Raises:
      ConfigError: the request does not fit the run.
    """
    if not request.out:
      raise ConfigError("images of a run need a folder: give out (--out)")
    self.run = Run.open(request.samples, request.trust)
    self._folder = request.out
    data, task = self.run.experiment.data, self.run.experiment.task
    if not (is_autoencoder(task) or isinstance(task, DenoiserTask)):
      raise ConfigError(
        f"{request.samples} is a run of {type(task).__name__}, which generates "
        "no images"
      )
    available = len(data.validation)
    self.count = request.num
    if request.num is None:
      self.count = min(DEFAULT_COUNT, available)
    if not 1 <= self.count <= available:
      raise ConfigError(
        f"num must be 1 to {available}, got {request.num} (--num)"
      )
    indices = range(self.count)
    self.held_out = ImageSet(
      "held-out examples", data.validation, indices, data.centred
    )
    self.is_reconstruction = is_autoencoder(task)
    if self.is_reconstruction:
      self.settings: dict[str, Any] = {"what": "reconstructions"}
      self._reconstruct = reconstruction_function(self.run, sharding)
    else:
      config = _sampling_config(request, self.held_out[0])
      self._sampler = ConditionSampler(
        self.run, config, sharding, is_unconditional=request.unconditional
      )
      self._sampler.check(self._examples(0))
      self.settings = _describe(request, config, task)
    self.settings |= {"step": self.run.step}

  def begin(self) -> None:
    """Writes the settings to the folder; to be called before `write`.

    Raises:
      ConfigError: the folder holds images of other settings.
    """
    path = os.path.join(self._folder, SETTINGS)
    try:
      stored = read_object(path, ConfigError, has_constants=True)
    except FileNotFoundError:
      stored = None
    settings = self.settings | {"run": os.path.abspath(self.run.folder)}
    if stored is not None and stored != settings:
      odd = [name for name in settings if stored.get(name) != settings[name]]
      raise ConfigError(
        f"{self._folder} holds images of another {', '.join(odd)}; choose "
        "another out folder (--out)"
      )
    os.makedirs(self._folder, exist_ok=True)
    if stored is None and processes.is_first():
      with replace_file(path, "utf-8") as file:
        json.dump(settings, file)

  def write(self) -> ImageSet:
    """All images; those that exist already are not generated again."""
    folder = os.path.join(self._folder, "samples")
    os.makedirs(folder, exist_ok=True)
    path = lambda i: os.path.join(folder, f"{i:06d}.png")
    done = next(
      (i for i in range(self.count) if not os.path.exists(path(i))), self.count
    )
    with Progress("sampling", self.count, "images", done) as bar:
      for begin, images in self._blocks(done):
        for i, image in enumerate(images, begin):
          if processes.is_first():
            image_files.write_png(path(i), image)
        bar.update(len(images))
    processes.barrier("images written")
    return folder_images(folder, self.count)

  def _blocks(self, done: int) -> Iterator[tuple[int, Images]]:
    """Blocks of images, each with the index of its first."""
    for begin in range(done, self.count, BATCH):
      examples = self._examples(begin)
      if self.is_reconstruction:
        images = self._reconstruct(examples["image"])
      else:
        images = self._sampler.generate(examples, begin)
      yield begin, images[: self.count - begin]

  def _examples(self, begin: int) -> dict[str, np.ndarray]:
    """A full block; the last example is repeated at the end."""
    data, size = self.run.experiment.data, min(BATCH, self.count)
    indices = np.minimum(np.arange(begin, begin + size), self.count - 1)
    return batching.ordered(
      data.validation,
      indices.tolist(),
      augment=data.centred,
      tokenizer=self.run.tokenizer,
      transforms=data.transforms,
    )


def _sampling_config(
  request: EvaluationRequest, image: np.ndarray
) -> SamplingConfig:
  name, spacing = parse_sampler_name(request.sampler or "ddim")
  fields = {"sampler": name}
  if spacing:
    fields["timestep_spacing"] = spacing
  return SamplingConfig(
    height=image.shape[0],
    width=image.shape[1],
    sampler_config=SamplerConfig(request.steps, eta=request.eta, **fields),
    guidance=ClassifierFreeGuidance(request.guidance),
    seed=request.seed,
  )


def _describe(
  request: EvaluationRequest, config: SamplingConfig, task: DenoiserTask
) -> dict[str, Any]:
  """How images are generated: what two sets must share to be comparable."""
  return {
    "what": "unconditional samples" if request.unconditional else "samples",
    "sampler": config.sampler_config.sampler,
    "steps": config.sampler_config.steps,
    "guidance": config.guidance.scale,
    "eta": config.sampler_config.eta,
    "seed": config.seed,
    "dtype": str(getattr(task.model.unet, "dtype", "float32")),
  }
