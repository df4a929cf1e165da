"""Every conditioner there is, under one name."""

from ldm_jax.nn.conditioners.clip_embedder import ClipEmbedder
from ldm_jax.nn.conditioners.embedders import (
  ClassEmbedder,
  LayoutEmbedder,
  SizeEmbedder,
  TextEmbedder,
)
from ldm_jax.nn.conditioners.spatial import (
  DepthMap,
  LowResolution,
  MaskedImage,
  NeighbourEmbeddings,
  SegmentationEmbedder,
)

Conditioner = (
  ClassEmbedder
  | SizeEmbedder
  | TextEmbedder
  | LayoutEmbedder
  | ClipEmbedder
  | SegmentationEmbedder
  | DepthMap
  | MaskedImage
  | LowResolution
  | NeighbourEmbeddings
)

# They read what is made of pictures, not the batch's own arrays; see beside.py.
ConcatConditioner = MaskedImage | LowResolution


def has_null(part: Conditioner) -> bool:
  """Whether guidance may lead away from what it says.

  A map or a picture stays, unless training sometimes left it out.
  """
  kinds = SegmentationEmbedder | DepthMap | MaskedImage | LowResolution
  is_stay = isinstance(part, kinds)
  return not isinstance(part, SizeEmbedder) and not (
    is_stay and part.drop_rate == 0
  )
