"""Pictures that a run makes of its held-out examples, kept in a folder."""

import argparse
import json
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from tqdm import tqdm

from ldm_jax.data import batching
from ldm_jax.diffusion.guidance import ClassifierFreeGuidance
from ldm_jax.diffusion.samplers import SamplerConfig
from ldm_jax.diffusion.samplers.names import parse_sampler_name
from ldm_jax.errors import ConfigError
from ldm_jax.evaluation.image_sets import ImageSet, folder_images
from ldm_jax.evaluation.reconstruct import (
  BATCH,
  Images,
  Reconstructor,
  restorer,
)
from ldm_jax.run import Run
from ldm_jax.runtime import image_files
from ldm_jax.runtime.devices import processes
from ldm_jax.runtime.devices.sharding import Sharding
from ldm_jax.sampling import SamplingConfig
from ldm_jax.training.autoencoder import AutoencoderTask
from ldm_jax.training.denoiser import DenoiserTask

USUAL = 1000  # pictures unless another number is asked for
ASKED = "asked.json"


class SampleWriter:
  """Makes what is missing of a run's pictures.

  Attributes:
    held: the examples.
    is_restoring: whether they are reconstructed; else drawn anew.
    told: of how it is done.
  """

  def __init__(self, flags: argparse.Namespace, sharding: Sharding):
    """Opens the run and compiles nothing yet.

    Raises:
      ConfigError: the flags do not fit the run.
    """
    if not flags.out:
      raise ConfigError("a run's pictures need a place; give --out")
    self.run, self._folder = Run.open(flags.samples), flags.out
    data, task = self.run.experiment.data, self.run.experiment.task
    if not isinstance(task, AutoencoderTask | DenoiserTask):
      raise ConfigError(
        f"{flags.samples} is a run of {type(task).__name__}, which makes no "
        "pictures"
      )
    most = len(data.validation)
    self.count = min(USUAL, most) if flags.num is None else flags.num
    if not 1 <= self.count <= most:
      raise ConfigError(f"--num must be 1 to {most}, got {flags.num}")
    places = range(self.count)
    self.held = ImageSet("examples", data.validation, places, data.centred)
    self.is_restoring = isinstance(task, AutoencoderTask)
    if self.is_restoring:
      self.told: dict[str, Any] = {"what": "reconstructions"}
      self._restore = restorer(self.run, sharding)
    else:
      settings = _settings(flags, self.held[0])
      self._artist = Reconstructor(
        self.run, settings, sharding, is_null=flags.null
      )
      self._artist.check(self._examples(0))
      self.told = _told(flags, settings, task)
    self.told |= {"step": self.run.step}

  def make(self) -> ImageSet:
    """All pictures; those that are there already are not made again."""
    folder = os.path.join(self._folder, "samples")
    os.makedirs(folder, exist_ok=True)
    path = lambda i: os.path.join(folder, f"{i:06d}.png")
    done = next(
      (i for i in range(self.count) if not os.path.exists(path(i))), self.count
    )
    with tqdm(total=self.count, initial=done, unit="image") as bar:
      for begin, images in self._made(done):
        for i, image in enumerate(images, begin):
          if processes.is_first():
            image_files.write_png(path(i), image)
        bar.update(len(images))
    processes.barrier("pictures are made")
    return folder_images(folder, self.count)

  def _made(self, done: int) -> Iterator[tuple[int, Images]]:
    """Block after block, each with the number of its first."""
    for begin in range(done, self.count, BATCH):
      examples = self._examples(begin)
      if self.is_restoring:
        images = self._restore(examples["image"])
      else:
        images = self._artist.draw(examples, begin)
      yield begin, images[: self.count - begin]

  def _examples(self, begin: int) -> dict[str, np.ndarray]:
    """A whole block, the last example again where there are no more."""
    data, size = self.run.experiment.data, min(BATCH, self.count)
    places = np.minimum(np.arange(begin, begin + size), self.count - 1)
    return batching.ordered(
      data.validation,
      places.tolist(),
      augment=data.centred,
      tokenizer=self.run.tokenizer,
      transforms=data.transforms,
    )

  def begin(self) -> None:
    """Writes down what is made; to be called before `make`.

    Raises:
      ConfigError: other pictures are there.
    """
    path = os.path.join(self._folder, ASKED)
    try:
      with open(path) as file:
        before = json.load(file)
    except FileNotFoundError:
      before = None
    except ValueError as error:
      raise ConfigError(f"{path} is damaged: {error}") from None
    asked = self.told | {"run": os.path.abspath(self.run.folder)}
    if before is not None and before != asked:
      odd = [name for name in asked if before.get(name) != asked[name]]
      raise ConfigError(
        f"{self._folder} holds pictures of another {', '.join(odd)}; choose "
        "another --out"
      )
    os.makedirs(self._folder, exist_ok=True)
    if before is None and processes.is_first():
      with open(path + ".part", "w") as file:
        json.dump(asked, file)
      os.replace(path + ".part", path)


def _settings(flags: argparse.Namespace, image: np.ndarray) -> SamplingConfig:
  name, timestep_spacing = parse_sampler_name(flags.sampler or "ddim")
  sampler_config = {"sampler": name} | (
    {"timestep_spacing": timestep_spacing} if timestep_spacing else {}
  )
  return SamplingConfig(
    height=image.shape[0],
    width=image.shape[1],
    sampler_config=SamplerConfig(flags.steps, eta=flags.eta, **sampler_config),
    guidance=ClassifierFreeGuidance(flags.guidance),
    seed=flags.seed,
  )


def _told(
  flags: argparse.Namespace, settings: SamplingConfig, task: DenoiserTask
) -> dict[str, Any]:
  return {
    "what": "samples of nothing said" if flags.null else "samples",
    "sampler": settings.sampler_config.sampler,
    "steps": settings.sampler_config.steps,
    "guidance": settings.guidance.scale,
    "eta": settings.sampler_config.eta,
    "seed": settings.seed,
    "dtype": str(getattr(task.model.unet, "dtype", "float32")),
  }
