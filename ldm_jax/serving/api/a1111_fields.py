"""The fields of A1111's txt2img and img2img, as requests of this package."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from ldm_jax.errors import ConfigError
from ldm_jax.sampling.request import SEEDS, GenerationRequest
from ldm_jax.serving.api.encoded_images import (
  over_white,
  read_base64,
  read_pixels,
)

# Fields of features that there are none of here, and the values with which they
# do nothing. Any other value is refused. `...` stands for every value: what the
# field changes is switched off by another one.
WITHOUT_EFFECT: dict[str, tuple] = {
  "enable_hr": (False, None),
  **dict.fromkeys(
    (
      *("hr_scale", "hr_upscaler", "hr_second_pass_steps", "hr_resize_x"),
      *("hr_resize_y", "hr_checkpoint_name", "hr_sampler_name"),
      *("hr_scheduler", "hr_prompt", "hr_negative_prompt", "hr_cfg"),
      *("hr_additional_modules", "refiner_switch_at", "subseed"),
      *("s_tmax", "s_tmin", "do_not_save_samples", "do_not_save_grid"),
      *("override_settings_restore_afterwards", "inpaint_full_res_padding"),
      *("force_task_id", "comments", "disable_extra_networks", "save_images"),
    ),
    (...,),
  ),
  "firstphase_width": (0, None),
  "firstphase_height": (0, None),
  "subseed_strength": (0, None),
  "seed_resize_from_h": (-1, 0, None),
  "seed_resize_from_w": (-1, 0, None),
  "styles": ([], None),
  "restore_faces": (False, None),
  "tiling": (False, None),
  "s_churn": (0, None),
  "s_noise": (1, None),
  "s_min_uncond": (0, None),
  "refiner_checkpoint": (None, ""),
  "script_name": (None, ""),
  "script_args": ([], None),
  "alwayson_scripts": ({}, None),
  "infotext": (None, ""),
  "initial_noise_multiplier": (1, None),
  "resize_mode": (0,),
  "latent_mask": (None,),
}
# Fields that A1111's clients always send for a mask, which is binary here.
WARNED = {
  "mask_blur": ((0,), "the border of the mask is not blurred"),
  "inpainting_fill": ((1,), "sampling starts from the noised image"),
  "inpaint_full_res": ((False, 0), "the whole image is denoised"),
}
_AUTOMATIC = ("automatic", "", None)


class Fields(BaseModel):
  """What both endpoints take."""

  model_config = ConfigDict(extra="allow")

  prompt: str = ""
  negative_prompt: str = ""
  seed: int = -1
  batch_size: int = Field(1, ge=1)
  n_iter: int = Field(1, ge=1)
  steps: int = 50
  cfg_scale: float = 7.0
  width: int = 512
  height: int = 512
  sampler_name: str | None = None
  sampler_index: str | None = None
  scheduler: str | None = None
  eta: float | None = None
  override_settings: dict[str, Any] | None = None
  send_images: bool = True
  denoising_strength: float | None = None

  def check(self, allowed: Mapping[str, tuple] = WITHOUT_EFFECT) -> None:
    """Raises ConfigError for a field that has no meaning here."""
    for name, value in (self.model_extra or {}).items():
      if name not in allowed:
        raise ConfigError(f"this server does not know the field {name!r}")
      values = allowed[name]
      if ... not in values and value not in values:
        raise ConfigError(
          f"{name}={value!r} is not supported; leave it out or give "
          f"{values[0]!r}"
        )

  @property
  def images(self) -> int:
    """How many images are asked for."""
    return self.batch_size * self.n_iter

  def requests(self, model: str, **more: Any) -> list[GenerationRequest]:
    """A request for each image: image i has seed + i, as in A1111.

    Args:
      model: name of the model that is served.
      more: fields of the requests.

    Raises:
      ConfigError: a field cannot be obeyed.
    """
    sampler = self.sampler_name or self.sampler_index
    scheduler = self.scheduler
    settings = self._settings(model)
    first = GenerationRequest(
      prompt=self.prompt,
      negative_prompt=self.negative_prompt,
      seed=-1 if self.seed < 0 else self.seed % SEEDS,
      steps=self.steps,
      guidance=self.cfg_scale,
      width=self.width,
      height=self.height,
      sampler=sampler,
      timestep_spacing=None
      if (scheduler or "").lower() in _AUTOMATIC
      else scheduler,
      eta=self.eta,
      emphasis=True,
      **settings,
      **more,
    ).with_drawn_seed()
    return [
      dataclasses.replace(first, seed=(first.seed + i) % SEEDS)
      for i in range(self.images)
    ]

  def _settings(self, model: str) -> dict[str, Any]:
    """Fields of `override_settings`."""
    found = {}
    for name, value in (self.override_settings or {}).items():
      if name == "CLIP_stop_at_last_layers":
        found["clip_skip"] = value
      elif name == "sd_model_checkpoint":
        if str(value).partition(" [")[0] != model:
          raise ConfigError(
            f"this server has the model {model!r} alone, not {value!r}"
          )
      else:
        raise ConfigError(f"override_settings {name!r} is not supported")
    return found


class TextFields(Fields):
  """What /sdapi/v1/txt2img takes."""


class ImageFields(Fields):
  """What /sdapi/v1/img2img takes."""

  init_images: list[str] = Field(min_length=1, max_length=1)
  mask: str | None = None
  inpainting_mask_invert: int = 0
  image_cfg_scale: float | None = None
  include_init_images: bool = False
  denoising_strength: float | None = 0.75

  def check(self, allowed: Mapping[str, tuple] = WITHOUT_EFFECT) -> None:
    """Raises ConfigError for a field that has no meaning here."""
    super().check({**allowed, **dict.fromkeys(WARNED, (...,))})

  def given_images(self) -> dict[str, Any]:
    """The request's fields of the images."""
    pixels = read_pixels(
      read_base64(self.init_images[0], "init_images"), "image"
    )
    found: dict[str, Any] = {"image": over_white(pixels)}
    if self.mask is not None:
      mask = over_white(read_pixels(read_base64(self.mask, "mask"), "mask"))
      grey = mask.astype(np.float32).mean(-1)
      if self.inpainting_mask_invert:
        grey = 255 - grey
      found["mask"] = np.where(grey >= 128, np.uint8(255), np.uint8(0))
    return found | {"strength": self.denoising_strength}

  def warnings(self) -> list[str]:
    """What is not as in A1111, one line each."""
    extra = self.model_extra or {}
    if self.mask is None:
      return []
    return [
      f"{name}={extra[name]!r} has no effect: {text}"
      for name, (values, text) in WARNED.items()
      if name in extra and extra[name] not in values
    ]
