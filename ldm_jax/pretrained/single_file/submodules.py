"""The networks of a single file: where they are, and their configs."""

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from ldm_jax.errors import WeightsError
from ldm_jax.nn.autoencoder import Autoencoder
from ldm_jax.nn.encoders.clip_text import ClipText
from ldm_jax.nn.encoders.text_encoder import TextEncoder
from ldm_jax.pretrained.configs import text_encoder_config, unet_reader
from ldm_jax.pretrained.configs.autoencoder_config import (
  autoencoder,
  autoencoder_config,
)
from ldm_jax.pretrained.configs.latent_statistics import published_statistics
from ldm_jax.pretrained.configs.unet_writer import unet_config
from ldm_jax.pretrained.single_file import tensor_shapes
from ldm_jax.pretrained.single_file.autoencoder_shapes import read_autoencoder
from ldm_jax.pretrained.single_file.families import Family
from ldm_jax.pretrained.single_file.tensor_shapes import Shape, Shapes

PartialConfig = Mapping[str, Any]  # some keys of a config.json


@dataclasses.dataclass(frozen=True)
class Submodule:
  """One network of a file.

  Attributes:
    name: its subfolder in diffusers' layout: "unet", "vae", "text_encoder",
      "text_encoder_2"; and "class_embedder", which diffusers does not have.
    kind: what weights/naming/parameter_names.py calls it.
    prefix: before the names of its tensors.
    config: what its config.json would hold.
  """

  name: str
  kind: str
  prefix: str
  config: dict[str, Any]


class SubmoduleLocation(NamedTuple):
  """A prefix that a network may have, and a tensor by which it is found."""

  name: str
  kind: str
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

_HEAD = 64  # features of a head, in all CLIP text encoders and LDM's
_SINUSOIDS = 256  # features of each of SDXL's sizes
_BLOCKS_OF_H = 24  # in OpenCLIP's ViT-H, of which SD 2 leaves out the last


def find(
  shapes: Mapping[str, Shape], sites: list[SubmoduleLocation]
) -> SubmoduleLocation | None:
  """The first of the locations whose tensor is present."""
  found = (site for site in sites if site.prefix + site.tensor in shapes)
  return next(found, None)


@contextlib.contextmanager
def _hint_at_config(site: SubmoduleLocation, key: str):
  """Adds to an error how the caller can set what shapes do not show."""
  try:
    yield
  except ValueError as error:
    raise WeightsError(
      f"{site.name}: {error}; shapes do not show this: give it, as in "
      f"config={{{site.name!r}: {{{key!r}: ...}}}}, or name a folder of "
      "configs (--config=FOLDER)"
    ) from error


def unet_submodule(
  site: SubmoduleLocation,
  shapes: Mapping[str, Shape],
  family: Family,
  overrides: PartialConfig,
) -> Submodule:
  """The U-Net; `overrides` overrides what follows from shapes and family.

  Raises:
    WeightsError: heads or groups do not divide its channels.
  """
  module, inputs = tensor_shapes.read_unet(Shapes(shapes, site.prefix))
  plan = module.attention
  if "attention_head_dim" not in overrides:
    heads = {"heads": family.heads, "head_width": family.head_width}
    plan = dataclasses.replace(plan, **heads)
  groups = overrides.get("norm_num_groups", tensor_shapes.GROUPS)
  with _hint_at_config(site, "attention_head_dim"):
    module = module.clone(attention=plan)
  with _hint_at_config(site, "norm_num_groups"):
    module = module.clone(groups=groups)
  sinusoids = (
    _sinusoids(shapes, inputs.vector, family) if family.sizes else None
  )
  inputs = inputs._replace(size=family.size, sinusoids=sinusoids)
  with _hint_at_config(site, "attention_head_dim"):
    config = unet_config(module, inputs) | overrides
    unet_reader.unet(config)
  return Submodule(site.name, site.kind, site.prefix, config)


def _sinusoids(shapes: Mapping[str, Shape], vector: int, family: Family) -> int:
  """Features of each size: the vector's less the pooled text's, divided."""
  for site in TEXTS:
    pooled = shapes.get(f"{site.prefix}text_projection")
    if site.name == "text_encoder_2" and pooled is not None:
      return (vector - pooled[-1]) // family.sizes
  return _SINUSOIDS


def vae_submodule(
  site: SubmoduleLocation,
  shapes: Mapping[str, Shape],
  family: Family,
  overrides: PartialConfig,
) -> Submodule:
  """The first stage; `overrides` overrides what follows from shapes and family.

  Raises:
    WeightsError: its layout is not that of `Autoencoder`, or groups do not
      divide its channels.
  """
  module = read_autoencoder(Shapes(shapes, site.prefix))
  return _vae_submodule(site, module, family, overrides)


def lone_vae_submodule(
  site: SubmoduleLocation,
  shapes: Mapping[str, Shape],
  family: Family,
  overrides: PartialConfig,
) -> tuple[Submodule, str]:
  """The first stage of a file without a U-Net, and a warning if its scale and
  shift are guesses; see `published_statistics`.

  Raises:
    WeightsError: as `vae_submodule`.
  """
  module = read_autoencoder(Shapes(shapes, site.prefix))
  module, scale, warning = published_statistics(module)
  family = family._replace(scale=scale)
  if "scaling_factor" in overrides:
    warning = ""
  return _vae_submodule(site, module, family, overrides), warning


def _vae_submodule(
  site: SubmoduleLocation,
  module: Autoencoder,
  family: Family,
  overrides: PartialConfig,
) -> Submodule:
  scale = overrides.get("scaling_factor", family.scale)
  if scale is None:
    raise WeightsError(
      "the latents of this model have a scale that its file should hold as "
      "scale_factor, which is missing; give it, as in "
      "config={'vae': {'scaling_factor': ...}}"
    )
  groups = overrides.get("norm_num_groups", tensor_shapes.GROUPS)
  with _hint_at_config(site, "norm_num_groups"):
    regroup = lambda trunk: trunk and dataclasses.replace(trunk, groups=groups)
    module = module.clone(
      trunk=regroup(module.trunk), decoder_trunk=regroup(module.decoder_trunk)
    )
    size = family.size * module.stride
    config = autoencoder_config(module, scaling_factor=scale, sample_size=size)
    config |= overrides
    autoencoder(config)
  return Submodule(site.name, site.kind, site.prefix, config)


def text_submodule(
  site: SubmoduleLocation, shapes: Mapping[str, Shape], overrides: PartialConfig
) -> Submodule:
  """A text encoder or class embedder; `overrides` overrides what shapes show.

  Raises:
    WeightsError: heads do not divide its width.
  """
  tensors = Shapes(shapes, site.prefix)
  is_ldm = site.kind == "text"
  key = "encoder_attention_heads" if is_ldm else "num_attention_heads"
  with _hint_at_config(site, key):
    if site.kind == "classes":
      config = (
        text_encoder_config.classes_config(tensor_shapes.read_classes(tensors))
        | overrides
      )
      text_encoder_config.classes(config)
    elif is_ldm:
      config = (
        text_encoder_config.text_config(_ldm_text_encoder(tensors, overrides))
        | overrides
      )
      text_encoder_config.text(config)
    else:
      config = (
        text_encoder_config.clip_config(
          _clip_text_encoder(site, tensors, overrides)
        )
        | overrides
      )
      text_encoder_config.clip(config)
  return Submodule(site.name, site.kind, site.prefix, config)


def _ldm_text_encoder(tensors: Shapes, overrides: PartialConfig) -> TextEncoder:
  module = tensor_shapes.read_text(tensors)
  heads = _heads(module.head_width, overrides.get("encoder_attention_heads"))
  return module.clone(heads=heads, head_width=module.head_width // heads)


def _clip_text_encoder(
  site: SubmoduleLocation, tensors: Shapes, overrides: PartialConfig
) -> ClipText:
  """A CLIP text encoder, of SD 2 without its last block and projection.

  Those are not used, and files made from folders lack them. With only the
  projection missing, ViT-H is recognised by its 24 blocks.
  """
  is_open = site.kind == "open_clip"
  module = (
    tensor_shapes.read_open_clip if is_open else tensor_shapes.read_clip
  )(tensors)
  heads = _heads(module.width, overrides.get("num_attention_heads"))
  if is_open and site.name == "text_encoder":
    is_whole = module.projection is not None or module.depth == _BLOCKS_OF_H
    module = module.clone(depth=module.depth - is_whole, projection=None)
  return module.clone(heads=heads)


def _heads(width: int, heads: int | None) -> int:
  if heads is None and width % _HEAD:
    raise ValueError(f"{width} features do not divide into heads of {_HEAD}")
  return heads or width // _HEAD
