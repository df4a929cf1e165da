"""Parameters of a training state, in which scanned blocks are stacked."""

from collections.abc import Mapping
from typing import Any

import jax

from ldm_jax.latent_diffusion import LatentDiffusion, Parameters
from ldm_jax.nn.operators.block_scan import (
  has_stacks,
  stack_scanned,
  unstack_blocks,
)


def stack_parameters(
  model: LatentDiffusion, variables: Mapping[str, Any]
) -> dict[str, Any]:
  """Variables with those blocks stacked that their networks scan.

  Args:
    variables: "unet", "conditioners" by `input_key`, or either.
  """
  found = dict(variables)
  if "unet" in found:
    found["unet"] = stack_scanned(model.unet, found["unet"])
  if "conditioners" in found:
    named = {c.input_key: c for c in model.conditioners}
    found["conditioners"] = {
      name: stack_scanned(named[name], part)
      for name, part in found["conditioners"].items()
    }
  return found


def unstack_parameters(params: Parameters) -> Parameters:
  """The same, each block by its name, as files and LoRAs call it."""
  parts = {"conditioners": dict(params.conditioners), "unet": params.unet}
  apart = unstack_variables(parts)
  return params if apart is parts else params.replace(**apart)


def unstack_variables(variables: Any) -> Any:
  """Dictionaries of variables without stacks; themselves if there are none."""
  if not has_stacks(variables):
    return variables
  return jax.jit(unstack_blocks)(variables)
