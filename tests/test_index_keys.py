"""No key of model_index.json is passed over without a line."""

from ldm_jax.pretrained.configs.index_keys import unread_keys


def test_keys_that_are_obeyed_or_absent_say_nothing():
  index = {
    "_class_name": "StableDiffusionPipeline",
    "unet": ["diffusers", "UNet2DConditionModel"],
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    "requires_safety_checker": True,
    "image_encoder": [None, None],
    "controlnet": [None, None],
    "is_unet_version_one": False,
  }
  assert unread_keys(index) == ()


def test_other_components_and_options_are_named():
  index = {
    "controlnet": ["diffusers", "ControlNetModel"],
    "prior": ["diffusers", "PriorTransformer"],
    "is_distilled": True,
  }
  lines = unread_keys(index)
  assert len(lines) == 3
  assert "ControlNetModel" in lines[0] and "is_distilled=True" in lines[2]
