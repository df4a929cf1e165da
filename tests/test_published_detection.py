"""A published single file gives the configs of the same model's folder."""

import pytest
from published_configs import BIG_G, CLIP_L, CONFIGS, KL_F8, VIT_H, VQ_F4
from published_networks import FIRST_STAGES, UNETS
from single_files import (
  CLIP,
  FIRST,
  OPEN,
  SECOND,
  open_clip_file,
  text_file,
  unet_file,
  vae_file,
)

from ldm_jax.pretrained.configs.text_encoder_config import clip
from ldm_jax.pretrained.single_file.detect import detect

L_PART = ("text_encoder", CLIP, CLIP_L)
H_PART = ("text_encoder", OPEN, VIT_H)
XL_PARTS = (
  ("text_encoder", f"{FIRST}transformer.text_model.", CLIP_L),
  ("text_encoder_2", f"{SECOND}model.", BIG_G),
)
# Family, and text encoders: their names, prefixes and configs.
PUBLISHED = {
  "sd1": ("sd1", L_PART),
  "sd1-inpainting": ("sd1-inpainting", L_PART),
  "sd2": ("sd2-v", H_PART),
  "sd2-depth": ("sd2-depth", H_PART),
  "sdxl-base": ("sdxl", *XL_PARTS),
  "sdxl-refiner": (
    "sdxl-refiner",
    ("text_encoder_2", f"{FIRST}model.", BIG_G),
  ),
  "x4-upscaler": ("x4-upscaler", H_PART),
  "celeba256": ("ldm-unconditional",),
  "lsun_churches256": ("ldm-churches",),
  "cin256-v2": ("ldm-classes-f4",),
  "txt2img-1p4B": ("ldm-text-f8",),
}


def text_part(prefix, config):
  encoder = clip(config)
  if config is VIT_H:
    return open_clip_file(prefix, encoder)
  return text_file(prefix, "clip" if config is CLIP_L else "open_clip", encoder)


def same(found, published, but):
  for key in published.keys() & found.keys() - {*but}:
    assert found[key] == published[key], key


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_file_has_the_config_of_its_folder(name):
  family, *texts = PUBLISHED[name]
  module, *fed, _ = UNETS[name]
  is_vq = module.out_channels == 3
  first_stage, _ = FIRST_STAGES["vq-f4" if is_vq else "kl-f8"]
  shapes = unet_file(module, tuple(fed)) | vae_file(first_stage)
  shapes |= {"scale_factor": ()}
  for _, prefix, config in texts:
    shapes |= text_part(prefix, config)
  found = detect(shapes, read=lambda name: 0.5, prediction="v")
  assert found.family == family
  same(found.unet.config, CONFIGS[name], ["sample_size"])
  same(found.vae.config, VQ_F4 if is_vq else KL_F8, ["sample_size"])
  assert [part.name for part in found.text_encoders] == [
    text[0] for text in texts
  ]
  for part, (_, prefix, config) in zip(found.text_encoders, texts, strict=True):
    assert part.prefix == prefix
    # Of no use where nothing is projected.
    same(part.config, config, ["projection_dim"])
