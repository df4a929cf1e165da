"""The process and the sampler of SD 3 and FLUX.1, by their schedulers."""

import pytest

from ldm_jax.diffusion.schedule import Schedule
from ldm_jax.diffusion.shift import DynamicShift
from ldm_jax.errors import ConfigError
from ldm_jax.nn.flux.flux import Flux
from ldm_jax.nn.mmdit.mmdit import MMDiT
from ldm_jax.pretrained.dit.sampling_defaults import sampling_defaults

EULER = {"_class_name": "FlowMatchEulerDiscreteScheduler"}


@pytest.mark.parametrize("network", [MMDiT(), Flux()])
@pytest.mark.parametrize(
  "scheduler",
  [
    {
      "_class_name": "UniPCMultistepScheduler",
      "use_flow_sigmas": True,
      "flow_shift": 3.0,
      "prediction_type": "flow_prediction",
    },
    {"_class_name": "DPMSolverMultistepScheduler"},
    {"_class_name": "FlowMatchLCMScheduler"},
    {"_class_name": "FooScheduler"},
    {},
  ],
)
def test_schedulers_of_no_flow_are_refused_by_name(network, scheduler):
  with pytest.raises(ConfigError, match=EULER["_class_name"]) as refused:
    sampling_defaults(network, scheduler)
  assert repr(scheduler.get("_class_name")) in str(refused.value)
  assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
  "network, shift",
  [
    (MMDiT(), 3.0),
    (Flux(embeds_guidance=True), DynamicShift()),
    (Flux(embeds_guidance=False), 1.0),
  ],
)
def test_without_a_scheduler_the_shift_is_the_published_models(network, shift):
  """Of SD 3 and 3.5; of FLUX.1-dev, by the size; of FLUX.1-schnell, none."""
  found = sampling_defaults(network, None)
  assert (found.schedule, found.prediction) == (
    Schedule("rectified_flow", steps=network.flow_steps),
    "flow",
  )
  assert (found.sampler.sampler, found.sampler.shift) == ("euler", shift)
  own = sampling_defaults(network, EULER | {"shift": 2.0})
  assert own.sampler.shift == 2.0
