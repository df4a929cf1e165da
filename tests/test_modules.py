"""Configs of autoencoders, text encoders and schedules, read and written."""

import json
import math

import numpy as np
import pytest
from networks import autoencoder_shapes, text_shapes
from published_configs import (
  ASYMMETRIC_VAE,
  BIG_G,
  CLIP_L,
  FLUX2_VAE,
  FLUX_VAE,
  KL_F8,
  KL_F16,
  SD3_VAE,
  VIT_H,
  VQ_F4,
)
from published_networks import FIRST_STAGES, kl, vq

from ldm_jax.diffusion.schedule import Schedule
from ldm_jax.errors import ConfigError
from ldm_jax.nn.autoencoder import Autoencoder, ConvStack
from ldm_jax.nn.conditioners.embedders import ClassEmbedder
from ldm_jax.nn.encoders.clip_text import ClipText
from ldm_jax.nn.encoders.text_encoder import TextEncoder
from ldm_jax.pretrained.configs.autoencoder_config import (
  autoencoder,
  autoencoder_config,
)
from ldm_jax.pretrained.configs.scheduler_config import (
  schedule,
  schedule_config,
)
from ldm_jax.pretrained.configs.text_encoder_config import (
  classes,
  classes_config,
  clip,
  clip_config,
  text,
  text_config,
)


def size(sizes):
  return sum(math.prod(shape) for shape in sizes.values())


AUTOENCODERS = {
  "kl-f8": KL_F8,
  "kl-f16": KL_F16,
  "vq-f4": VQ_F4,
  "vq-f4-noattn": VQ_F4 | {"mid_block_add_attention": False},
}


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_a_published_first_stage_has_its_published_size(name):
  made, scale = autoencoder(AUTOENCODERS[name])
  assert made == FIRST_STAGES[name][0]
  assert size(autoencoder_shapes(made)) == FIRST_STAGES[name][1]
  assert scale == 0.18215


STATISTICS = KL_F8 | {"latents_mean": [0.5] * 4, "latents_std": [2.0] * 4}
LATER = {
  "sd3": (SD3_VAE, 1.5305),
  "flux1": (FLUX_VAE, 0.3611),
  "flux2": (FLUX2_VAE, 1.0),
  "asymmetric": (ASYMMETRIC_VAE, 0.18215),
  "statistics": (STATISTICS, 0.18215),
}


@pytest.mark.parametrize("name", LATER)
def test_a_later_first_stage_is_written_as_it_was_read(name):
  config, scale = LATER[name]
  module, found = autoencoder(config)
  assert found == scale
  written = autoencoder_config(module, scaling_factor=scale)
  written = json.loads(json.dumps(written))
  kept = {key: written[key] for key in config if key != "sample_size"}
  assert kept == {key: config[key] for key in kept}
  assert autoencoder(written) == (module, scale)


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_a_first_stages_config_is_written_as_it_was_read(name):
  config = AUTOENCODERS[name] | {"scaling_factor": 0.5}
  written = autoencoder_config(
    autoencoder(config)[0], scaling_factor=0.5, sample_size=512
  )
  written = json.loads(json.dumps(written))
  assert {key: written[key] for key in config} == config
  assert autoencoder(written) == autoencoder(config)


@pytest.mark.parametrize(
  "module",
  [
    kl((1, 2, 4), 3),
    kl((1, 1, 2), 5, (0, 2)),
    vq((1, 2), 4, 16, (), False),
    Autoencoder(ConvStack(24, (1, 3), 1, (1,), True, groups=8), 2),
  ],
)
def test_a_first_stage_is_read_as_it_was_written(module):
  written = autoencoder_config(module, scaling_factor=2.0)
  assert autoencoder(written) == (module, 2.0)


@pytest.mark.parametrize(
  "base, key, value, message",
  [
    (KL_F8, "shift_factor", "0.1159", "a number"),
    (KL_F8 | {"latents_std": [1] * 4}, "latents_mean", None, "neither of"),
    (KL_F8 | {"latents_std": [1] * 4}, "latents_mean", [0.1], "of 4 numbers"),
    (KL_F8 | {"latents_mean": [1] * 4}, "latents_std", [0] * 4, "above 0"),
    (STATISTICS, "shift_factor", 0.1, "null with latents_mean"),
    (KL_F8, "use_quant_conv", 1, "true or false"),
    (FLUX2_VAE, "patch_size", [2, 1], "two equal numbers"),
    (FLUX2_VAE, "scaling_factor", 0.5, "needed: null"),
    (ASYMMETRIC_VAE, "up_block_out_channels", [32] * 3, "4 widths"),
    (KL_F8, "in_channels", 1, "needed: 3"),
    (KL_F8, "scaling_factor", None, "a number above 0"),
    (KL_F8, "latent_channels", "4", "a whole number"),
    (KL_F8, "norm_num_groups", 48, "a divisor of all"),
    (VQ_F4, "norm_type", "spatial", "needed: 'group'"),
    (VQ_F4, "vq_embed_dim", 4, "needed: 3"),
    (VQ_F4, "lookup_from_codebook", True, "needed: null"),
  ],
)
def test_other_first_stages_are_refused_by_name(base, key, value, message):
  with pytest.raises(ConfigError, match=key) as error:
    autoencoder(base | {key: value})
  assert message in str(error.value)


def test_neutral_values_are_not_refused():
  neutral = {"shift_factor": 0.0, "latents_mean": None, "force_upcast": True}
  assert autoencoder(KL_F8 | neutral) == autoencoder(KL_F8)


def test_a_first_stage_without_a_diffusers_class_is_refused():
  wide = Autoencoder(ConvStack(multipliers=(2, 4)), 4)
  with pytest.raises(ConfigError, match="start with 1"):
    autoencoder_config(wide, scaling_factor=1.0)


# Counted on transformers' models: systems of SD 1, SD 2 and SDXL.
@pytest.mark.parametrize(
  "config, count",
  [(CLIP_L, 123_060_480), (VIT_H, 340_387_840), (BIG_G, 694_659_840)],
)
def test_a_published_text_encoder_has_its_published_size(config, count):
  encoder = clip(config)
  assert size(text_shapes(encoder)) == count
  written = json.loads(json.dumps(clip_config(encoder)))
  unused = {"projection_dim"} if encoder.projection is None else set()
  for key in config.keys() - unused:
    assert written[key] == config[key], key
  assert clip(written) == encoder


@pytest.mark.parametrize(
  "encoder",
  [
    ClipText(),
    ClipText(99, 24, 2, 3, 11, 40, "gelu", 7, 5),
    ClipText(99, 24, 2, 3, 11, None, "quick_gelu", None, 98),
  ],
)
def test_a_text_encoder_is_read_as_it_was_written(encoder):
  assert clip(clip_config(encoder)) == encoder


def test_clip_pools_at_the_end_token_of_its_config():
  assert clip(CLIP_L).end is None
  assert clip({}).end == 49407
  assert clip(CLIP_L | {"eos_token_id": 9}).end == 9


@pytest.mark.parametrize(
  "key, value, message",
  [
    ("hidden_act", "relu", "needed: 'quick_gelu' or 'gelu'"),
    ("layer_norm_eps", 1e-6, "needed: 1e-05"),
    ("model_type", "t5", "needed: 'clip_text_model'"),
    ("eos_token_id", [1, 2], "one token"),
    ("num_attention_heads", 7, "does not divide into 7 heads"),
  ],
)
def test_other_text_encoders_are_refused(key, value, message):
  with pytest.raises(ConfigError) as error:
    clip(CLIP_L | {key: value})
  assert message in str(error.value)


def test_ldms_encoders_are_read_as_they_were_written():
  encoder = TextEncoder(30_522, 640, 3, 8, 64, 77)
  assert text(text_config(encoder)) == encoder
  assert text({}) == TextEncoder(30_522)  # txt2img-1p4B's
  with pytest.raises(ConfigError, match="encoder_ffn_dim"):
    text(text_config(encoder) | {"encoder_ffn_dim": 640})
  embedder = ClassEmbedder(1000, 512)
  assert classes_config(embedder)["n_classes"] == 1001
  assert classes(classes_config(embedder)) == embedder


SD_NOISE = {
  "_class_name": "PNDMScheduler",
  "beta_end": 0.012,
  "beta_schedule": "scaled_linear",
  "beta_start": 0.00085,
  "clip_sample": False,
  "num_train_timesteps": 1000,
  "set_alpha_to_one": False,
  "skip_prk_steps": True,
  "steps_offset": 1,
  "trained_betas": None,
}


def test_stable_diffusions_schedule():
  made, prediction = schedule(SD_NOISE)
  assert (made, prediction) == (Schedule(), "eps")
  # alpha-bar at the last step, from the float64 product of the reference.
  np.testing.assert_allclose(made.alpha_bar[-1], 0.004660099, rtol=1e-6)
  changes = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
  assert schedule(SD_NOISE | changes) == (Schedule(zero_terminal_snr=True), "v")


def test_missing_values_of_a_scheduler_are_its_class_defaults():
  defaults = lambda name: schedule({"_class_name": name})[0]
  assert defaults("DDIMScheduler") == Schedule("linear", 0.0001, 0.02)
  assert defaults("FlaxPNDMScheduler") == defaults("DDIMScheduler")
  assert defaults("HeunDiscreteScheduler") == Schedule("linear", 0.00085, 0.012)
  assert defaults("LCMScheduler") == Schedule()


@pytest.mark.parametrize(
  "made, prediction",
  [
    (Schedule(), "eps"),
    (Schedule("linear", 0.0001, 0.02, 50), "x0"),
    (Schedule("cosine", zero_terminal_snr=True), "v"),
  ],
)
def test_a_schedule_is_read_as_it_was_written(made, prediction):
  written = schedule_config(made, prediction)
  assert schedule(written) == (made, prediction)
  # Without these diffusers clips latents and starts a step too late.
  assert (written["clip_sample"], written["set_alpha_to_one"]) == (False,) * 2
  assert (written["steps_offset"], written["timestep_spacing"]) == (
    1,
    "leading",
  )


@pytest.mark.parametrize(
  "key, value, message",
  [
    ("_class_name", "EDMEulerScheduler", "DDIMScheduler"),
    ("beta_schedule", "sigmoid", "'scaled_linear'"),
    ("prediction_type", "flow", "'v_prediction'"),
    ("trained_betas", [0.1, 0.2], "needed: null"),
    ("beta_start", 2.0, "0 < start"),
  ],
)
def test_other_schedules_are_refused(key, value, message):
  with pytest.raises(ConfigError) as error:
    schedule(SD_NOISE | {key: value})
  assert message in str(error.value)


def test_a_schedule_without_a_diffusers_class_is_refused():
  with pytest.raises(ConfigError, match="no schedule of kind 'sqrt'"):
    schedule_config(Schedule("sqrt"), "eps")
