"""The families of published models, and settings that no tensor shows."""

from collections.abc import Collection
from typing import NamedTuple

from ldm_jax.diffusion.prediction import Prediction
from ldm_jax.diffusion.schedule import Schedule
from ldm_jax.errors import WeightsError
from ldm_jax.nn.unet import UNet
from ldm_jax.pretrained.configs.defaults import SCALING_FACTOR
from ldm_jax.pretrained.configs.unet_reader import Inputs


class Family(NamedTuple):
  """The settings of a family of models.

  Attributes:
    size: side of the latents it was trained on.
    scale: what its latents are multiplied by; None if its file holds it.
    heads: of its U-Net, or None if their width is fixed.
    head_width: features of a head, or None if their number is fixed.
    sizes: number of sizes that the vector holds with the pooled text.
  """

  size: int
  scale: float | None
  heads: int | None = None
  head_width: int | None = None
  schedule: Schedule = Schedule()
  prediction: Prediction = "eps"
  sizes: int = 0


_LDM = Schedule(start=0.0015, end=0.0195)
_SD1 = Family(64, SCALING_FACTOR, heads=8)
_SD2 = Family(64, SCALING_FACTOR, head_width=64)
_SDXL = Family(128, 0.13025, head_width=64, sizes=6)

# CompVis's and Stability's configs (models/ldm and configs of their
# repositories). Of LDM's, the number after f is the first stage's stride.
FAMILIES = {
  "sd1": _SD1,
  "sd1-inpainting": _SD1,
  "sd1-instruct-pix2pix": _SD1,
  "sd2": _SD2,
  "sd2-v": _SD2._replace(size=96, prediction="v"),
  "sd2-inpainting": _SD2,
  "sd2-depth": _SD2,
  "sdxl": _SDXL,
  "sdxl-inpainting": _SDXL,
  "sdxl-instruct-pix2pix": _SDXL,
  "sdxl-refiner": _SDXL._replace(sizes=5),
  "x4-upscaler": Family(
    128,
    0.08333,
    heads=8,
    schedule=Schedule(start=0.0001, end=0.02),
    prediction="v",
  ),
  "ldm-text-f8": Family(32, SCALING_FACTOR, heads=8),
  "ldm-text-f4": Family(64, 1.0, head_width=32, schedule=_LDM),
  "ldm-classes-f8": Family(32, 1.0, head_width=32, schedule=_LDM),
  "ldm-classes-f4": Family(64, 1.0, heads=1, schedule=_LDM),
  "ldm-unconditional": Family(64, 1.0, head_width=32, schedule=_LDM),
  "ldm-churches": Family(
    32, None, heads=8, schedule=Schedule(start=0.0015, end=0.0155)
  ),
}

_PLAIN = {
  ("add", "conv"): "ldm-unconditional",
  ("scale_shift", "block"): "ldm-churches",
}
_BY_TEXT = {
  "clip": "sd1",
  "open_clip": "sd2",
  "text": "ldm-text",
  "classes": "ldm-classes",
}
# Of a U-Net without a text encoder that projects by convolutions.
_BY_CONTEXT = {
  768: "sd1",
  1280: "ldm-text",
  640: "ldm-text",
  512: "ldm-classes",
}


def family_of(unet: UNet, inputs: Inputs, texts: Collection[str]) -> str:
  """The key of FAMILIES; "sd2" whatever it predicts.

  Args:
    texts: kinds of the text encoders in the file.

  Raises:
    WeightsError: it is of no known family.
  """
  plan, style = unet.attention, (unet.modulation, unet.resampling)
  extra = inputs.channels - unet.out_channels
  if plan.kind == "plain":
    name = _PLAIN.get(style, "") if unet.vector is None else ""
  else:
    name = _base(unet, inputs, texts) if style == ("add", "conv") else ""
  if name == "x4-upscaler":
    extra -= 3  # the low-resolution image
  suffix = {0: "", 1: "-depth", unet.out_channels + 1: "-inpainting"}
  suffix.setdefault(unet.out_channels, "-instruct-pix2pix")
  name += suffix.get(extra, "-unknown")
  if name not in FAMILIES:
    raise WeightsError(
      f"a U-Net of {inputs.channels} channels in and {unet.out_channels} out, "
      f"with {unet.attention.kind} attention, context {inputs.context}, vector "
      f"{unet.vector} of {inputs.vector}, {unet.modulation} modulation and "
      f"{unet.resampling} resampling is of no family known here; these are "
      f"{', '.join(FAMILIES)}"
    )
  return name


def _base(unet: UNet, inputs: Inputs, texts: Collection[str]) -> str:
  """The family, whatever is concatenated with the latents; "" if none."""
  if unet.vector == "table":
    return "x4-upscaler"
  if unet.vector == "mlp":
    if inputs.context == 1024:  # unCLIP, conditioned on images
      return ""
    is_one = inputs.context != 2048 if texts else inputs.context == 1280
    is_refiner = is_one and "clip" not in texts
    return "sdxl-refiner" if is_refiner else "sdxl"
  by_context = _BY_CONTEXT.get(inputs.context, "sd1")
  alone = "sd2" if unet.attention.is_linear else by_context
  name = next((_BY_TEXT[text] for text in texts), alone)
  if name.startswith("ldm"):
    # Those with deeper transformers are conditioned on layouts, not texts.
    is_text = unet.attention.mid_depth == 1
    stride = {3: "-f4", 4: "-f8"}.get(unet.out_channels, "-unknown")
    return name + stride if is_text else ""
  return name if texts or unet.out_channels == 4 else ""
