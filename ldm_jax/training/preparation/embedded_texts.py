"""Training on cached texts: the text encoders run once, when it starts."""

from typing import Any

import jax
import numpy as np

from ldm_jax.config import Experiment
from ldm_jax.data.sources.cached_latents import CachedLatents
from ldm_jax.errors import ConfigError
from ldm_jax.nn.conditioners.embedded_text import (
  embed,
  embedded_name,
  null_variables,
)
from ldm_jax.pretrained.stacked_parameters import unstack_variables
from ldm_jax.runtime.checkpointing.checksums import checksum
from ldm_jax.runtime.devices import processes
from ldm_jax.runtime.devices.sharding import Sharding
from ldm_jax.training.checks import conditioners_of
from ldm_jax.training.denoiser import Frozen
from ldm_jax.training.preparation.texts import conditioner_json


def cached_texts(experiment: Experiment) -> dict[str, Any]:
  """The identities of the text outputs with `data.latents`, by input_key."""
  folder = experiment.data.latents
  return CachedLatents(folder).manifest.get("texts", {}) if folder else {}


def check_texts(experiment: Experiment) -> None:
  """Raises ConfigError for cached texts of other or of trained conditioners."""
  parts = {part.input_key: part for part in conditioners_of(experiment.task)}
  for name, identity in cached_texts(experiment).items():
    part = parts.get(name)
    if part is None or identity["conditioner"] != conditioner_json(part):
      raise _other_texts(experiment, name)
    if not part.is_frozen:
      raise ConfigError(
        f"the text conditioner of {name!r} is trained, and data.latents has "
        "its outputs; prepare latents without texts, or freeze it "
        "(is_frozen=True)"
      )


def _other_texts(experiment: Experiment, name: str) -> ConfigError:
  return ConfigError(
    f"the texts in {experiment.data.latents!r} were made by another text "
    f"conditioner of {name!r} than the config's; make them again: "
    "ldm-jax prepare --texts"
  )


def with_embedded_texts(
  experiment: Experiment,
  frozen: Any,
  held_out: dict[str, np.ndarray],
  sharding: Sharding,
) -> tuple[Any, dict[str, np.ndarray]]:
  """Frozen variables without text encoders, and a batch with their outputs.

  Without cached texts both are returned as they are.

  Args:
    held_out: the batch that is measured, with ids.

  Raises:
    ConfigError: the cached texts are those of other parameters.
  """
  kept = cached_texts(experiment)
  if not kept:
    return frozen, held_out
  if not isinstance(frozen, Frozen):
    raise ConfigError(
      f"{type(experiment.task).__name__} reads no cached texts; prepare "
      "latents without them"
    )
  for name, identity in kept.items():
    # `prepare` has taken it of parameters as files name them.
    variables = unstack_variables(frozen.conditioners[name])
    if identity["parameters"] != checksum(variables):
      raise _other_texts(experiment, name)
  nulls, batch = {}, dict(held_out)
  for part in experiment.task.model.conditioners:
    if part.input_key not in kept:
      continue
    name, variables = part.input_key, frozen.conditioners[part.input_key]
    ids = batch.pop(name)
    drop = np.zeros(len(ids), bool)
    rows = jax.jit(embed, static_argnums=0)(part, variables, ids, drop)
    rows = jax.tree.map(processes.gather, rows)
    batch |= {embedded_name(name, k): np.asarray(x) for k, x in rows.items()}
    null = null_variables(part, variables, ids[:1])
    nulls[name] = jax.tree.map(processes.gather, null)
  nulls = jax.device_put(nulls, sharding.tree_shardings(nulls))
  conditioners = {**frozen.conditioners, **nulls}
  return frozen.replace(conditioners=conditioners), batch
