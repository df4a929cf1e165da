"""Names and shapes of single files: tiny ones of every family."""

import dataclasses
import functools

import numpy as np
from networks import (
  autoencoder_shapes,
  class_shapes,
  text_shapes,
  unet_shapes,
)
from published_networks import plain, transformer, vq

from ldm_jax.diffusion.schedule import Schedule
from ldm_jax.nn.autoencoder import Autoencoder, ConvStack
from ldm_jax.nn.conditioners.embedders import ClassEmbedder
from ldm_jax.nn.encoders.clip_text import ClipText
from ldm_jax.nn.encoders.text_encoder import TextEncoder
from ldm_jax.nn.unet import UNet
from ldm_jax.weights.naming.parameter_names import Geometry, name_table
from ldm_jax.weights.safetensors_files import write_safetensors

UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIP = "cond_stage_model.transformer.text_model."
OPEN, OLD = "cond_stage_model.model.", "cond_stage_model."
FIRST, SECOND = "conditioner.embedders.0.", "conditioner.embedders.1."
LDM = Schedule(start=0.0015, end=0.0195)


def write_family(path, name, *, without=(), more=None, seed=0):
  """A single file of random float32 tensors of a family; returns its path.

  Args:
    without: prefixes of tensors to leave out.
    more: further tensors.
  """
  module, fed, others, vae, *_ = FAMILIES[name]
  shapes = unet_file(module, fed) | vae_file(vae) | others
  kept = {k: v for k, v in shapes.items() if not k.startswith(tuple(without))}
  rng = np.random.default_rng(seed)
  tensors = {
    name: np.float32(0.1 * rng.standard_normal(shape))
    for name, shape in kept.items()
  }
  write_safetensors(path, tensors | (more or {}))
  return str(path)


def under(prefix, network, shapes, geometry=None):
  """The names in a single file of parameters with these shapes."""
  names = name_table(network, "compvis", shapes, geometry or Geometry())
  return {prefix + row.foreign_name: row.foreign_shape() for row in names.rows}


def made_once(make):
  """Caches a function that returns a dictionary; each call returns a copy."""
  cached = functools.cache(make)
  return lambda *args: dict(cached(*args))


@made_once
def unet_file(module, fed, prefix=UNET):
  """Of (channels, context, vector)."""
  plan = module.attention
  geometry = Geometry(plan.heads, plan.head_width)
  return under(prefix, "unet", unet_shapes(module, *fed), geometry)


@made_once
def vae_file(module, prefix=VAE):
  return under(prefix, "autoencoder", autoencoder_shapes(module))


@made_once
def text_file(prefix, network, module):
  return under(prefix, network, text_shapes(module))


def open_clip_file(prefix, module):
  """A complete text encoder: a block more than is used, projection, scale."""
  more = module.clone(depth=module.depth + 1, projection=module.width)
  scale = {f"{prefix}logit_scale": ()}
  return text_file(prefix, "open_clip", more) | scale


def tiny(vector=None, out=4, **plan):
  plan = {"heads": 8} | plan
  depths = plan.pop("depths", (1, 0))
  linear = plan.pop("linear", False)
  mid = plan.pop("mid", 1)
  attention = transformer(depths, mid, plan["heads"], plan.get("width"), linear)
  return UNet(out, 64, (1, 2), 1, attention, vector=vector)


TINY_CLIP = ClipText(40, 64, 2, 1, 9)
TINY_H = ClipText(40, 128, 2, 2, 9, activation="gelu")
TINY_G = ClipText(40, 128, 3, 2, 9, None, "gelu", 128)
TINY_VAE = Autoencoder(ConvStack(32, (1, 2), 1), 4)
TINY_VQ = Autoencoder(
  ConvStack(32, (1, 2), 1, (1,)), 3, vq((1,), 3, 16).bottleneck
)
HEAD_64 = {"heads": None, "width": 64, "linear": True}
SD1, SD2 = tiny(), tiny(**HEAD_64)
SDXL = tiny("mlp", **HEAD_64)
SIZES = (4, 192, 6 * 16 + 128)  # of 16 features each, and the pooled text

CLIP_PART = text_file(CLIP, "clip", TINY_CLIP)
H_PART = open_clip_file(OPEN, TINY_H)
XL_PARTS = text_file(
  f"{FIRST}transformer.text_model.", "clip", TINY_CLIP
) | text_file(f"{SECOND}model.", "open_clip", TINY_G)
UPSCALER = dataclasses.replace(
  tiny("table", linear=True),
  attention=dataclasses.replace(
    transformer((0, 1), 1, 8, None, True), cross_only=(True, True)
  ),
)
FACES = UNet(3, 64, (1, 2), 1, plain((0, 1), None, 32))
CHURCHES = UNet(
  4, 64, (1, 2), 2, plain((1, 0), 8), modulation="scale_shift",
  resampling="block",
)  # fmt: skip
LDM_TEXT = TextEncoder(50, 32, 2, 2, 64, 9)
LDM_CLASSES = ClassEmbedder(10, 24)


# family: (U-Net, its inputs, other tensors, its VAE, scale, noise)
FAMILIES = {
  "sd1": (SD1, (4, 64), CLIP_PART, TINY_VAE, 0.18215, Schedule()),
  "sd1-inpainting": (SD1, (9, 64), CLIP_PART, TINY_VAE, 0.18215, Schedule()),
  "sd1-instruct-pix2pix": (
    SD1, (8, 64), CLIP_PART, TINY_VAE, 0.18215, Schedule(),
  ),
  "sd2-v": (SD2, (4, 128), H_PART, TINY_VAE, 0.18215, Schedule()),
  "sd2-inpainting": (SD2, (9, 128), H_PART, TINY_VAE, 0.18215, Schedule()),
  "sd2-depth": (SD2, (5, 128), H_PART, TINY_VAE, 0.18215, Schedule()),
  "sdxl": (SDXL, SIZES, XL_PARTS, TINY_VAE, 0.13025, Schedule()),
  "sdxl-inpainting": (
    SDXL, (9, *SIZES[1:]), XL_PARTS, TINY_VAE, 0.13025, Schedule(),
  ),
  "sdxl-instruct-pix2pix": (
    SDXL, (8, *SIZES[1:]), XL_PARTS, TINY_VAE, 0.13025, Schedule(),
  ),
  "sdxl-refiner": (
    SDXL, (4, 128, 5 * 16 + 128),
    text_file(f"{FIRST}model.", "open_clip", TINY_G),
    TINY_VAE, 0.13025, Schedule(),
  ),
  "x4-upscaler": (
    UPSCALER, (7, 72, 20), H_PART, TINY_VAE, 0.08333,
    Schedule(start=0.0001, end=0.02),
  ),
  "ldm-classes-f4": (
    tiny(out=3, heads=1), (3, 24),
    under(OLD, "classes", class_shapes(10, 24)),
    TINY_VQ, 1.0, LDM,
  ),
  "ldm-classes-f8": (
    tiny(heads=None, width=32), (4, 24),
    under(OLD, "classes", class_shapes(10, 24)),
    vq((1,), 4, 16), 1.0, LDM,
  ),
  "ldm-text-f8": (
    SD1, (4, 32), text_file(OLD, "text", LDM_TEXT), TINY_VAE, 0.18215,
    Schedule(),
  ),
  "ldm-text-f4": (
    tiny(out=3, heads=None, width=32), (3, 32),
    text_file(OLD, "text", LDM_TEXT), TINY_VQ, 1.0, LDM,
  ),
  "ldm-unconditional": (FACES, (3,), {}, TINY_VQ, 1.0, LDM),
  "ldm-churches": (
    CHURCHES, (4,), {"scale_factor": ()}, TINY_VAE, 0.7,
    Schedule(start=0.0015, end=0.0155),
  ),
}  # fmt: skip
