"""Keys of diffusers 0.42.1's schedulers: defaults, and the types of values."""

import math
from typing import Any

_NOISE = {
  "beta_start": 0.0001,
  "beta_end": 0.02,
  "beta_schedule": "linear",
  "num_train_timesteps": 1000,
  "prediction_type": "epsilon",
  "trained_betas": None,
}
_LDM = _NOISE | {"beta_start": 0.00085, "beta_end": 0.012}
_ZERO_SNR = {"rescale_betas_zero_snr": False}
_THRESHOLD = {
  "thresholding": False,
  "dynamic_thresholding_ratio": 0.995,
  "sample_max_value": 1.0,
}
_CLIP = {"clip_sample": True, "clip_sample_range": 1.0}
_LEADING = {"timestep_spacing": "leading", "steps_offset": 0}
_LINSPACE = {"timestep_spacing": "linspace", "steps_offset": 0}
_SIGMAS = {
  "use_karras_sigmas": False,
  "use_exponential_sigmas": False,
  "use_beta_sigmas": False,
}
_FLOW = {"use_flow_sigmas": False, "flow_shift": 1.0}
_SHIFT = {"use_dynamic_shifting": False, "time_shift_type": "exponential"}
_SOLVER = {
  "solver_order": 2,
  "algorithm_type": "dpmsolver++",
  "solver_type": "midpoint",
}
_DPM = (
  _NOISE
  | _THRESHOLD
  | _SOLVER
  | _SIGMAS
  | _FLOW
  | _SHIFT
  | {
    "final_sigmas_type": "zero",
    "lambda_min_clipped": -math.inf,
    "variance_type": None,
  }
)
_DISTILLED = (
  _LDM
  | _CLIP
  | _THRESHOLD
  | _LEADING
  | _ZERO_SNR
  | {
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "original_inference_steps": 50,
    "set_alpha_to_one": True,
    "timestep_scaling": 10.0,
  }
)
_KARRAS = _LDM | _SIGMAS | _LINSPACE

# Schedulers with a table of betas: every key of theirs with its default.
SCHEDULERS: dict[str, dict[str, Any]] = {
  "DDIMScheduler": _NOISE
  | _THRESHOLD
  | _CLIP
  | _LEADING
  | _ZERO_SNR
  | {"set_alpha_to_one": True},
  "DDPMScheduler": _NOISE
  | _THRESHOLD
  | _CLIP
  | _LEADING
  | _ZERO_SNR
  | {"variance_type": "fixed_small"},
  "DEISMultistepScheduler": _NOISE
  | _THRESHOLD
  | _SOLVER
  | _SIGMAS
  | _FLOW
  | _SHIFT
  | _LINSPACE
  | {
    "algorithm_type": "deis",
    "solver_type": "logrho",
    "lower_order_final": True,
  },
  "DPMSolverMultistepScheduler": _DPM
  | _LINSPACE
  | _ZERO_SNR
  | {
    "lower_order_final": True,
    "euler_at_final": False,
    "use_lu_lambdas": False,
  },
  "DPMSolverSinglestepScheduler": _DPM | {"lower_order_final": False},
  "DPMSolverSDEScheduler": _KARRAS | {"noise_sampler_seed": None},
  "EulerAncestralDiscreteScheduler": _NOISE | _LINSPACE | _ZERO_SNR,
  "EulerDiscreteScheduler": _NOISE
  | _SIGMAS
  | _LINSPACE
  | _ZERO_SNR
  | {
    "interpolation_type": "linear",
    "sigma_min": None,
    "sigma_max": None,
    "timestep_type": "discrete",
    "final_sigmas_type": "zero",
  },
  "HeunDiscreteScheduler": _KARRAS | _CLIP | {"clip_sample": False},
  "KDPM2AncestralDiscreteScheduler": _KARRAS,
  "KDPM2DiscreteScheduler": _KARRAS,
  "LCMScheduler": _DISTILLED,
  "LMSDiscreteScheduler": _NOISE | _SIGMAS | _LINSPACE,
  "PNDMScheduler": _NOISE
  | _LEADING
  | {"skip_prk_steps": False, "set_alpha_to_one": False},
  "SASolverScheduler": _NOISE
  | _THRESHOLD
  | _SIGMAS
  | _FLOW
  | _LINSPACE
  | {
    "predictor_order": 2,
    "corrector_order": 2,
    "tau_func": None,
    "algorithm_type": "data_prediction",
    "lower_order_final": True,
    "lambda_min_clipped": -math.inf,
    "variance_type": None,
  },
  "TCDScheduler": _DISTILLED,
  "UniPCMultistepScheduler": _NOISE
  | _THRESHOLD
  | _SIGMAS
  | _FLOW
  | _SHIFT
  | _LINSPACE
  | _ZERO_SNR
  | {
    "solver_order": 2,
    "predict_x0": True,
    "solver_type": "bh2",
    "lower_order_final": True,
    "disable_corrector": [],
    "solver_p": None,
    "final_sigmas_type": "zero",
    "sigma_min": None,
    "sigma_max": None,
    "shift_terminal": None,
  },
}

# Schedulers of flows, without a table of betas.
FLOW_SCHEDULERS: dict[str, dict[str, Any]] = {
  "FlowMatchEulerDiscreteScheduler": _SIGMAS
  | {
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "use_dynamic_shifting": False,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
    "invert_sigmas": False,
    "shift_terminal": None,
    "time_shift_type": "exponential",
    "stochastic_sampling": False,
  },
  "FlowMatchHeunDiscreteScheduler": {"num_train_timesteps": 1000, "shift": 1.0},
}

# Keys that a class obeys though its constructor has no such parameter: they
# stay in the config of a scheduler that was made from another's.
INHERITED = ("sigma_min", "sigma_max")

# Words that classes accept for a key.
WORDS = {
  "timestep_spacing": ("leading", "trailing", "linspace"),
  "final_sigmas_type": ("zero", "sigma_min"),
  "interpolation_type": ("linear", "log_linear"),
  "timestep_type": ("discrete", "continuous"),
  "time_shift_type": ("exponential", "linear"),
  "algorithm_type": (
    "dpmsolver++",
    "sde-dpmsolver++",
    "dpmsolver",
    "sde-dpmsolver",
    "deis",
    "data_prediction",
    "noise_prediction",
  ),
  "solver_type": ("midpoint", "heun", "logrho", "bh1", "bh2"),
  "variance_type": (
    None,
    "fixed_small",
    "fixed_small_log",
    "fixed_large",
    "fixed_large_log",
    "learned",
    "learned_range",
  ),
}
# Keys that take null besides values of their default's type.
OPTIONAL = {
  "sigma_min": float,
  "sigma_max": float,
  "shift_terminal": float,
  "noise_sampler_seed": int,
  "lambda_min_clipped": float,
}
# Keys of any value: they are refused elsewhere, or say nothing.
ANY = ("trained_betas", "solver_p", "tau_func", "beta_schedule")


def type_of(key: str, default: Any) -> type | None:
  """The type of a key's values; None if they may be of any."""
  if key in ANY or key in WORDS or key == "prediction_type":
    return None
  return OPTIONAL.get(key, type(default))
