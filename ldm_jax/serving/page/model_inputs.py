"""What a model reads, and so what its page shows."""

import dataclasses

from ldm_jax.loaded_model import LoadedModel
from ldm_jax.nn.conditioners.clip_embedder import ClipEmbedder
from ldm_jax.nn.conditioners.embedders import (
  ClassEmbedder,
  LayoutEmbedder,
  SizeEmbedder,
  TextEmbedder,
)
from ldm_jax.nn.conditioners.source_image import SourceImage
from ldm_jax.nn.conditioners.spatial import (
  DepthMap,
  LowResolution,
  MaskedImage,
  NeighbourEmbeddings,
  SegmentationEmbedder,
)
from ldm_jax.nn.conditioners.t5_embedder import T5Embedder

_KNOWN = (
  *(ClipEmbedder, T5Embedder, TextEmbedder, ClassEmbedder, SizeEmbedder),
  LayoutEmbedder,
  *(SegmentationEmbedder, DepthMap, NeighbourEmbeddings),
  *(MaskedImage, LowResolution, SourceImage),
)


@dataclasses.dataclass(frozen=True)
class ModelInputs:
  """What a model reads in addition to noise.

  Attributes:
    prompt, segmap, layout, depth, neighbours: whether it reads these.
    classes: (name, number) of its classes; () if it has none.
    masked_image: whether it is an inpainting model, which needs a mask.
    low_resolution: whether it is an upscaler, which needs an image.
    source_image: whether it edits an image by an instruction.
    arrays: input keys of user-defined conditioners.
    has_guidance: whether it has an unconditional side.
    has_noise_levels: whether its upscaling adds noise to the image.
  """

  prompt: bool
  segmap: bool
  layout: bool
  depth: bool
  neighbours: bool
  classes: tuple[tuple[str, int], ...]
  masked_image: bool
  low_resolution: bool
  source_image: bool
  arrays: tuple[str, ...]
  has_guidance: bool
  has_noise_levels: bool

  @property
  def starts_from_noise(self) -> bool:
    """Whether it makes images without being given one."""
    needs = self.masked_image, self.low_resolution, self.source_image
    return not any(needs)

  @property
  def subject(self) -> str:
    """What images are made from, as in "Text to image"."""
    names = {
      "Text": self.prompt,
      "Class": bool(self.classes),
      "Segmentation": self.segmap,
      "Layout": self.layout,
      "Depth": self.depth,
      "Neighbours": self.neighbours,
      "Array": bool(self.arrays),
    }
    found = [name for name, is_read in names.items() if is_read]
    return " and ".join(found).capitalize() or "Noise"


def model_inputs(loaded: LoadedModel) -> ModelInputs:
  """What `loaded` reads."""
  model = loaded.model
  has = lambda *kinds: any(isinstance(p, kinds) for p in model.conditioners)
  keys = [p.input_key for p in model.conditioners if not isinstance(p, _KNOWN)]
  return ModelInputs(
    prompt=has(TextEmbedder, ClipEmbedder, T5Embedder),
    segmap=has(SegmentationEmbedder),
    layout=has(LayoutEmbedder),
    depth=has(DepthMap),
    neighbours=has(NeighbourEmbeddings),
    classes=_classes(loaded),
    masked_image=has(MaskedImage),
    low_resolution=has(LowResolution),
    source_image=has(SourceImage),
    arrays=tuple(keys),
    has_guidance=bool(model.unconditional_keys) or model.embeds_guidance,
    has_noise_levels=model.noise_augmentation_schedule is not None,
  )


def _classes(loaded: LoadedModel) -> tuple[tuple[str, int], ...]:
  part = loaded.model.find_conditioner(ClassEmbedder)
  if part is None:
    return ()
  names = loaded.classes or tuple(map(str, range(part.classes)))
  return tuple((name, number) for number, name in enumerate(names))
