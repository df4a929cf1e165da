"""No key of model_index.json is passed over without a line."""

import pytest

from ldm_jax.errors import ConfigError
from ldm_jax.pretrained.configs.index_keys import check_pipeline, unread_keys


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


@pytest.mark.parametrize(
  "kind, name",
  [
    ("flux", "FluxPipeline"),
    ("flux", "FluxFillPipeline"),
    ("flux", "FluxControlNetImg2ImgPipeline"),
    ("flux", None),
    ("mmdit", "StableDiffusion3Pipeline"),
    ("mmdit", "StableDiffusion3InpaintPipeline"),
    ("unet", "FluxKontextPipeline"),
  ],
)
def test_pipelines_of_known_inputs_are_taken(kind, name):
  check_pipeline(kind, {} if name is None else {"_class_name": name})


@pytest.mark.parametrize(
  "kind, name",
  [
    ("flux", "FluxKontextPipeline"),
    ("flux", "FluxKontextInpaintPipeline"),
    ("flux", "VisualClozePipeline"),
    ("flux", "StableDiffusion3Pipeline"),
    ("mmdit", "FluxPipeline"),
    ("mmdit", ["pipeline", "OwnPipeline"]),
  ],
)
def test_pipelines_of_other_inputs_are_refused_by_name(kind, name):
  with pytest.raises(ConfigError, match="needed for its") as refused:
    check_pipeline(kind, {"_class_name": name})
  assert repr(name) in str(refused.value)
  assert ("edits images" in str(refused.value)) == ("Kontext" in str(name))
