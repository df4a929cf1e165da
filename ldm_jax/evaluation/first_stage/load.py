"""Opens first stages: of runs, published folders, single files."""

import dataclasses
import math
import os
from collections.abc import Collection, Sequence
from typing import Any

import jax

from ldm_jax.errors import ConfigError
from ldm_jax.latents import check_encoder
from ldm_jax.nn.first_stage import FirstStage
from ldm_jax.pretrained.from_pretrained import find_components
from ldm_jax.pretrained.hub.fetch import local_path
from ldm_jax.pretrained.networks import load
from ldm_jax.run import Run, is_autoencoder
from ldm_jax.runtime.devices.sharding import Sharding


@dataclasses.dataclass(frozen=True)
class LoadedFirstStage:
  """A first stage with its parameters.

  Attributes:
    name: short, for tables.
    path: where it was read from.
    variables: of `module`.
  """

  name: str
  path: str
  module: FirstStage
  variables: Any

  @property
  def parameter_count(self) -> int:
    """How many numbers its parameters have."""
    leaves = jax.tree.leaves(self.variables)
    return sum(math.prod(leaf.shape) for leaf in leaves)


def load_first_stages(
  paths: Sequence[str], sharding: Sharding, trust: Collection[str] = ()
) -> list[LoadedFirstStage]:
  """The first stages of runs, folders, files or repositories.

  A run of an autoencoder is one, a run of a denoiser and a published model
  have one; a folder of diffusers' layout may be that of a model or of its VAE.

  Args:
    trust: see `Run.open`.

  Raises:
    ConfigError: a path is none of these, or has no first stage, or one
      without an encoder.
    WeightsError: weights are missing or malformed.
  """
  found = [_load(path, sharding, trust) for path in paths]
  return [
    dataclasses.replace(stage, name=name)
    for stage, name in zip(found, short_names(paths), strict=True)
  ]


def short_names(paths: Sequence[str]) -> list[str]:
  """The last part of every path, or as many as distinguish it from others.

  Folders named vae are named with the folder that they are in; equal paths
  are numbered.
  """
  parts = [os.path.normpath(path).split(os.sep) for path in paths]
  counts = [2 if part[-1] in ("vae", "vqvae") else 1 for part in parts]
  while True:
    names = [
      "/".join(part[-count:]) for part, count in zip(parts, counts, strict=True)
    ]
    longer = [
      i
      for i, name in enumerate(names)
      if names.count(name) > 1 and counts[i] < len(parts[i])
    ]
    if not longer:
      break
    for i in longer:
      counts[i] += 1
  return [
    name if names.count(name) == 1 else f"{name} ({names[:i].count(name) + 1})"
    for i, name in enumerate(names)
  ]


def _load(
  path: str, sharding: Sharding, trust: Collection[str]
) -> LoadedFirstStage:
  path = local_path(path)
  if Run.exists(path):
    run = Run.open(path, trust)
    task = run.experiment.task
    if is_autoencoder(task):
      check_encoder(task)
      module, variables = task.autoencoder, run.trained(sharding)
    elif getattr(task, "first_stage", None) is not None:
      module = task.first_stage
      variables = run.frozen(sharding).first_stage
    else:
      raise ConfigError(
        f"{path} is a run of {type(task).__name__}, which has no first stage"
      )
  else:
    network = find_components(path).networks.get("vae")
    if network is None:
      raise ConfigError(
        f"{path} has no autoencoder; give a run of one, a folder or file of "
        "one, or a model that has one"
      )
    module, variables = load(network)
    variables = jax.device_put(variables, sharding.replicated)
  return LoadedFirstStage("", path, module, variables)
