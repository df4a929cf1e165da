"""Every conditioner there is, under one name."""

from ldm_jax.nn.conditioner import (
  ClassEmbedder,
  LayoutEmbedder,
  SizeEmbedder,
  TextEmbedder,
)
from ldm_jax.nn.prompts import ClipEmbedder
from ldm_jax.nn.spatial import (
  DepthMap,
  Embeddings,
  LowResolution,
  MapEmbedder,
  MaskedImage,
)

Conditioner = (
  ClassEmbedder
  | SizeEmbedder
  | TextEmbedder
  | LayoutEmbedder
  | ClipEmbedder
  | MapEmbedder
  | DepthMap
  | MaskedImage
  | LowResolution
  | Embeddings
)

# They read what is made of pictures, not the batch's own arrays; see beside.py.
Beside = MaskedImage | LowResolution


def has_null(part: Conditioner) -> bool:
  """Whether guidance may lead away from what it says.

  A map or a picture stays, unless training sometimes left it out.
  """
  kinds = MapEmbedder | DepthMap | MaskedImage | LowResolution
  is_stay = isinstance(part, kinds)
  return not isinstance(part, SizeEmbedder) and not (
    is_stay and part.drop_rate == 0
  )
