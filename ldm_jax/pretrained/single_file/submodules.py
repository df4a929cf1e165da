"""The networks of a single file: where they lie, and their configurations."""

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from ldm_jax.errors import WeightsError
from ldm_jax.nn.encoders.clip_text import ClipText
from ldm_jax.nn.encoders.text_encoder import TextEncoder
from ldm_jax.pretrained.configs import text_encoder_config, unet_reader
from ldm_jax.pretrained.configs.autoencoder_config import (
  autoencoder,
  autoencoder_config,
)
from ldm_jax.pretrained.configs.unet_writer import unet_config
from ldm_jax.pretrained.single_file import tensor_shapes as seen
from ldm_jax.pretrained.single_file.families import Family
from ldm_jax.pretrained.single_file.tensor_shapes import Shape, Shapes

Given = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Submodule:
  """One network of a file.

  Attributes:
    name: what a folder of diffusers calls it: "unet", "vae", "text_encoder",
      "text_encoder_2"; and "class_embedder", which it has not.
    network: what weights/names.py calls it.
    prefix: before the names of its tensors.
    config: what its config.json would hold.
  """

  name: str
  network: str
  prefix: str
  config: dict[str, Any]


class SubmoduleLocation(NamedTuple):
  """Where a network may lie, and a tensor by which it shows."""

  name: str
  network: str
  prefix: str
  tensor: str


UNETS = [
  SubmoduleLocation(
    "unet", "unet", prefix, "output_blocks.0.0.in_layers.0.weight"
  )
  for prefix in ("model.diffusion_model.", "")
]
VAES = [
  SubmoduleLocation(
    "vae", "autoencoder", prefix, "encoder.down.0.block.0.conv1.weight"
  )
  for prefix in ("first_stage_model.", "vae.", "")
]
_CLIP = "embeddings.token_embedding.weight"
_OPEN_CLIP = "token_embedding.weight"
_FIRST, _SECOND = "conditioner.embedders.0.", "conditioner.embedders.1."
_OLD = "cond_stage_model."
TEXTS = [
  SubmoduleLocation(
    "text_encoder", "clip", f"{_OLD}transformer.text_model.", _CLIP
  ),
  SubmoduleLocation("text_encoder", "clip", f"{_OLD}transformer.", _CLIP),
  SubmoduleLocation("text_encoder", "open_clip", f"{_OLD}model.", _OPEN_CLIP),
  SubmoduleLocation(
    "text_encoder", "text", _OLD, "transformer.token_emb.weight"
  ),
  SubmoduleLocation("class_embedder", "classes", _OLD, "embedding.weight"),
  SubmoduleLocation(
    "text_encoder", "clip", f"{_FIRST}transformer.text_model.", _CLIP
  ),
  SubmoduleLocation(
    "text_encoder_2", "open_clip", f"{_FIRST}model.", _OPEN_CLIP
  ),
  SubmoduleLocation(
    "text_encoder_2", "open_clip", f"{_SECOND}model.", _OPEN_CLIP
  ),
]

_HEAD = 64  # features of a head, in every tower of CLIP and in LDM's encoder
_SINUSOIDS = 256  # features of each of SDXL's sizes
_BLOCKS_OF_H = 24  # in OpenCLIP's ViT-H, of which SD 2 leaves out the last


def find(
  shapes: Mapping[str, Shape], sites: list[SubmoduleLocation]
) -> SubmoduleLocation | None:
  """The first of the sites that shows."""
  shown = (site for site in sites if site.prefix + site.tensor in shapes)
  return next(shown, None)


@contextlib.contextmanager
def _advising(site: SubmoduleLocation, key: str):
  """Adds to a refusal what the caller can do."""
  try:
    yield
  except ValueError as error:
    raise WeightsError(
      f"{site.name}: {error}; shapes do not tell this: give it, as in "
      f"config={{{site.name!r}: {{{key!r}: ...}}}}, or name a folder of "
      "configs (--config=FOLDER)"
    ) from error


def unet_part(
  site: SubmoduleLocation,
  shapes: Mapping[str, Shape],
  family: Family,
  given: Given,
) -> Submodule:
  """The U-Net; `given` goes before what shapes and family say.

  Raises:
    WeightsError: heads or groups do not divide its channels.
  """
  module, fed = seen.read_unet(Shapes(shapes, site.prefix))
  plan = module.attention
  if "attention_head_dim" not in given:
    heads = {"heads": family.heads, "head_width": family.head_width}
    plan = dataclasses.replace(plan, **heads)
  groups = given.get("norm_num_groups", module.groups)
  module = module.clone(attention=plan, groups=groups)
  sinusoids = _sinusoids(shapes, fed.vector, family) if family.sizes else None
  fed = fed._replace(size=family.size, sinusoids=sinusoids)
  with _advising(site, "attention_head_dim"):
    config = unet_config(module, fed) | given
    unet_reader.unet(config)
  return Submodule(site.name, site.network, site.prefix, config)


def _sinusoids(shapes: Mapping[str, Shape], vector: int, family: Family) -> int:
  """Features of a size: the vector's less the pooled text's, shared out."""
  for site in TEXTS:
    pooled = shapes.get(f"{site.prefix}text_projection")
    if site.name == "text_encoder_2" and pooled is not None:
      return (vector - pooled[-1]) // family.sizes
  return _SINUSOIDS


def vae_part(
  site: SubmoduleLocation,
  shapes: Mapping[str, Shape],
  family: Family,
  given: Given,
) -> Submodule:
  """The first stage; `given` goes before what shapes and family say.

  Raises:
    WeightsError: it is not laid out as ours, or groups do not divide.
  """
  module = seen.read_autoencoder(Shapes(shapes, site.prefix))
  scale = given.get("scaling_factor", family.scale)
  if scale is None:
    raise WeightsError(
      "the latents of this model have a scale that its file holds as "
      "scale_factor and is not there to read; give it, as in "
      "config={'vae': {'scaling_factor': ...}}"
    )
  with _advising(site, "norm_num_groups"):
    size = family.size * module.stride
    config = autoencoder_config(module, scaling_factor=scale, sample_size=size)
    config |= given
    autoencoder(config)
  return Submodule(site.name, site.network, site.prefix, config)


def text_part(
  site: SubmoduleLocation, shapes: Mapping[str, Shape], given: Given
) -> Submodule:
  """A text encoder or class embedder; `given` goes before what shapes say.

  Raises:
    WeightsError: heads do not divide its width.
  """
  tensors = Shapes(shapes, site.prefix)
  is_ldm = site.network == "text"
  key = "encoder_attention_heads" if is_ldm else "num_attention_heads"
  with _advising(site, key):
    if site.network == "classes":
      config = (
        text_encoder_config.classes_config(seen.read_classes(tensors)) | given
      )
      text_encoder_config.classes(config)
    elif is_ldm:
      config = text_encoder_config.text_config(_text(tensors, given)) | given
      text_encoder_config.text(config)
    else:
      config = (
        text_encoder_config.clip_config(_tower(site, tensors, given)) | given
      )
      text_encoder_config.clip(config)
  return Submodule(site.name, site.network, site.prefix, config)


def _text(tensors: Shapes, given: Given) -> TextEncoder:
  module = seen.read_text(tensors)
  heads = _heads(module.head_width, given.get("encoder_attention_heads"))
  return module.clone(heads=heads, head_width=module.head_width // heads)


def _tower(site: SubmoduleLocation, tensors: Shapes, given: Given) -> ClipText:
  """A tower; of SD 2's the last block and the projection are not used.

  Files made from folders lack both, and ViT-H's 24 blocks are told by their
  number if only the projection is gone.
  """
  is_open = site.network == "open_clip"
  module = (seen.read_open_clip if is_open else seen.read_clip)(tensors)
  heads = _heads(module.width, given.get("num_attention_heads"))
  if is_open and site.name == "text_encoder":
    is_whole = module.projection is not None or module.depth == _BLOCKS_OF_H
    module = module.clone(depth=module.depth - is_whole, projection=None)
  return module.clone(heads=heads)


def _heads(width: int, given: int | None) -> int:
  if given is None and width % _HEAD:
    raise ValueError(f"{width} features do not divide into heads of {_HEAD}")
  return given or width // _HEAD
