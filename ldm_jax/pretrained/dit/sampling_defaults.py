"""What configs say of sampling from a denoiser."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ldm_jax.diffusion.prediction import Prediction
from ldm_jax.diffusion.samplers import SamplerConfig
from ldm_jax.diffusion.schedule import Schedule
from ldm_jax.errors import ConfigError
from ldm_jax.nn.conditioners.conditioner import Conditioner
from ldm_jax.nn.conditioners.embedders import ClassEmbedder
from ldm_jax.nn.dit.dit import DiT
from ldm_jax.nn.flux.flux import Flux
from ldm_jax.nn.mmdit.mmdit import MMDiT
from ldm_jax.nn.unet import UNet
from ldm_jax.pretrained.configs import (
  scheduler_config,
  unet_reader,
)
from ldm_jax.pretrained.configs.scheduler_defaults import FLOW_SCHEDULERS
from ldm_jax.pretrained.configs.strict_config import Config
from ldm_jax.pretrained.configs.value_types import malformed_values
from ldm_jax.pretrained.dit import dit_config
from ldm_jax.pretrained.flow_match import flow_scheduler
from ldm_jax.pretrained.flux import flux_config
from ldm_jax.pretrained.flux import folder as flux_folder
from ldm_jax.pretrained.mmdit import folder as mmdit_folder
from ldm_jax.pretrained.mmdit import mmdit_config

# Readers of the configs of transformers, by their kinds.
_READERS = {"dit": dit_config, "mmdit": mmdit_config, "flux": flux_config}
SD3_GUIDANCE = 7.0  # of StableDiffusion3Pipeline


class SamplingDefaults(NamedTuple):
  """A model's process and its own sampler.

  Attributes:
    warnings: what of the scheduler's config is done otherwise, a line each.
  """

  schedule: Schedule = Schedule()
  prediction: Prediction = "eps"
  sampler: SamplerConfig = SamplerConfig(final_time=0.0)
  warnings: tuple[str, ...] = ()


def sampling_defaults(
  unet: UNet | DiT | MMDiT | Flux, scheduler: Config | None
) -> SamplingDefaults:
  """The process of a denoiser, by its scheduler_config.json if it has one.

  A network with `flow_steps`, such as a SiT, needs none: it is of the straight
  line. SD 3 and FLUX.1 without one have that of their published folders.

  Raises:
    ConfigError: the scheduler asks for something that is not supported, or is
      of a flow and the network is not, or of another number of steps; or it is
      not of a flow, and the network is SD 3's or FLUX.1's.
  """
  flow_steps = getattr(unet, "flow_steps", None)
  if isinstance(unet, MMDiT | Flux) and flow_steps is not None:
    scheduler = _flow_scheduler(unet, scheduler)
  is_flow = scheduler is not None and flow_scheduler.is_flow(scheduler)
  if flow_steps is not None and not is_flow:
    schedule = Schedule("rectified_flow", steps=flow_steps)
    sampler = SamplerConfig(timestep_spacing="trailing")
    return SamplingDefaults(schedule, "flow", sampler)
  if scheduler is None:
    return SamplingDefaults()
  if is_flow and scheduler.get("num_train_timesteps", 1000) != flow_steps:
    raise ConfigError(
      f"the scheduler is {scheduler['_class_name']} of "
      f"{scheduler.get('num_train_timesteps', 1000)} steps, and the network "
      f"has flow_steps={flow_steps}; it needs a scheduler of its own process"
    )
  sampler = scheduler_config.sampler_config(scheduler)
  if isinstance(unet, Flux):
    sampler = flow_scheduler.with_own_times(sampler)
  return SamplingDefaults(
    *scheduler_config.schedule(scheduler),
    sampler,
    scheduler_config.unsupported_options(scheduler),
  )


def _flow_scheduler(unet: MMDiT | Flux, scheduler: Config | None) -> Config:
  """The scheduler of SD 3 or FLUX.1, or the published one in place of None.

  Raises:
    ConfigError: it is not of a flow.
  """
  if scheduler is None:
    own = mmdit_folder.SCHEDULER
    if isinstance(unet, Flux):
      own = flux_folder.scheduler(unet.embeds_guidance)
    return {**own, "num_train_timesteps": unet.flow_steps}
  if not flow_scheduler.is_flow(scheduler):
    name = "FLUX.1" if isinstance(unet, Flux) else "SD 3"
    raise ConfigError(
      f"the scheduler is {scheduler.get('_class_name')!r}, and {name} is "
      f"sampled by {' or '.join(FLOW_SCHEDULERS)}: give one of these in "
      "scheduler_config.json, or leave the scheduler out of model_index.json "
      "for that of the published model"
    )
  return scheduler


def denoiser_inputs(config: Config, kind: str) -> unet_reader.Inputs:
  """The inputs of a denoiser of a kind.

  Raises:
    ConfigError: a key asks for something that is not supported.
  """
  with malformed_values("the config of the U-Net"):
    return _READERS.get(kind, unet_reader).inputs(config)


def default_guidance(
  unet: UNet | DiT | MMDiT | Flux, inputs: unet_reader.Inputs
) -> float:
  """The scale of guidance of diffusers' pipelines."""
  if isinstance(unet, Flux):
    is_fill = inputs.channels > 2 * unet.out_channels
    scale = 30.0 if is_fill else 3.5
    return scale if unet.embeds_guidance else 1.0  # where it is not read
  if isinstance(unet, DiT):
    return 4.0
  if isinstance(unet, MMDiT):
    return SD3_GUIDANCE
  return 5.0 if inputs.sinusoids else 7.5


def class_names(
  index: Mapping[str, Any], conditioners: Sequence[Conditioner]
) -> tuple[str, ...]:
  """model_index.json's id2label, in the order of the labels; () without it.

  Raises:
    ConfigError: it does not name every class.
  """
  named = index.get("id2label")
  if named is None:
    return ()
  counts = [c.classes for c in conditioners if isinstance(c, ClassEmbedder)]
  needed = [str(i) for i in range(sum(counts))]
  if not isinstance(named, dict) or {*map(str, named)} != {*needed}:
    raise ConfigError(
      f"model_index.json: id2label does not name the {len(needed)} labels "
      "of the network; take it out to give classes by number"
    )
  return tuple(str(named[label]) for label in needed)
