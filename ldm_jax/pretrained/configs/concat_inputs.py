"""Which conditioners a U-Net's input channels need besides the latents."""

from ldm_jax.errors import ConfigError
from ldm_jax.nn.conditioners.conditioner import Conditioner
from ldm_jax.nn.conditioners.source_image import SourceImage
from ldm_jax.nn.conditioners.spatial import DepthMap, LowResolution, MaskedImage
from ldm_jax.pretrained.configs.strict_config import Config
from ldm_jax.pretrained.configs.unet_reader import Inputs

_EDITING = (
  "StableDiffusionInstructPix2PixPipeline",
  "StableDiffusionXLInstructPix2PixPipeline",
)


def concat_conditioners(
  index: Config, inputs: Inputs, latents: int, stride: int
) -> list[Conditioner]:
  """What is concatenated with x_t, by the number of the U-Net's channels.

  Args:
    index: model_index.json, or {} of a single file.
    latents: channels of the first stage's latents.
    stride: of the first stage.

  Raises:
    ConfigError: the image to edit is not concatenated as InstructPix2Pix does,
      or a FLUX reads another number of channels than the published ones.
  """
  if inputs.is_flux:
    return _flux_conditioners(inputs.channels - latents, latents, stride)
  if inputs.channels == 2 * latents + 1:
    return [MaskedImage()]
  if inputs.channels == latents + 3 and inputs.vector is not None:
    return [LowResolution(inputs.vector, min(350, inputs.vector))]
  if inputs.channels == latents + 1:
    return [DepthMap(cell=stride)]
  # Others concatenate other latents: Marigold those of an image with those of
  # its depth, the latent upscaler those of a smaller image.
  is_known = index.get("_class_name", _EDITING[0]) in _EDITING
  if inputs.channels != 2 * latents or inputs.context is None or not is_known:
    return []
  if index.get("is_cosxl_edit"):
    raise ConfigError(
      "model_index.json has is_cosxl_edit=True, whose image latents are scaled "
      "and whose noise is EDM's; needed: a model of InstructPix2Pix, without it"
    )
  return [SourceImage()]


def _flux_conditioners(
  channels: int, latents: int, stride: int
) -> list[Conditioner]:
  """Of FLUX.1-Fill, of FLUX.1-Depth and -Canny, or none."""
  known = {
    0: [],
    latents + stride**2: [MaskedImage("flux")],
    latents: [SourceImage(drop_rate=0.0, joint_drop_rate=0.0, is_scaled=True)],
  }
  if channels not in known:
    raise ConfigError(
      f"a FLUX that reads {channels} channels after latents of {latents} is "
      f"none of those known here, which read {', '.join(map(str, known))}"
    )
  return known[channels]
