"""Published networks by name, built from arguments alone."""

import math

import jax
import jax.numpy as jnp

from ldm_jax.nn.autoencoder import Autoencoder, ConvStack
from ldm_jax.nn.bottleneck import VectorQuantizer
from ldm_jax.nn.unet import AttentionPlan, UNet


def sizes(module, *specs):
  """(parameters, tensors) of a module, without allocating any."""
  shapes = jax.eval_shape(module.init, jax.random.key(0), *specs)
  leaves = jax.tree.leaves(shapes)
  return sum(math.prod(leaf.shape) for leaf in leaves), len(leaves)


def f32(*shape):
  return jax.ShapeDtypeStruct(shape, jnp.float32)


F4, F8 = (1, 2, 4), (1, 2, 4, 4)
F16, F32 = (1, 1, 2, 2, 4), (1, 1, 2, 2, 4, 4)
VQ_F8 = (1, 2, 2, 4)


def kl(multipliers, channels, levels=()):
  return Autoencoder(
    ConvStack(multipliers=multipliers, attention_levels=levels), channels
  )


def vq(multipliers, channels, codes, levels=(), has_mid_attention=True):
  trunk = ConvStack(
    multipliers=multipliers,
    attention_levels=levels,
    has_mid_attention=has_mid_attention,
  )
  return Autoencoder(trunk, channels, VectorQuantizer(codes, channels))


FIRST_STAGES = {
  "kl-f4": (kl(F4, 3), 55_312_063),
  "kl-f8": (kl(F8, 4), 83_653_863),
  "kl-f16": (kl(F16, 16, (4,)), 69_610_963),
  "kl-f32": (kl(F32, 64, (4, 5)), 103_880_131),
  "x4-upscaler": (kl(F4, 4), 55_325_927),
  "vq-f4": (vq(F4, 3, 8192), 55_322_782),
  "vq-f4-noattn": (vq(F4, 3, 8192, (), False), 53_219_486),
  "vq-f8": (vq(VQ_F8, 4, 16384, (3,)), 67_717_295),
  "vq-f8-n256": (vq(VQ_F8, 4, 256, (3,)), 67_652_783),
  "vq-f16": (vq(F16, 8, 16384, (4,)), 69_593_371),
}


def transformer(depths, mid=1, heads=None, width=None, linear=False, **kwargs):
  return AttentionPlan(depths, mid, heads, width, is_linear=linear, **kwargs)


def plain(depths, heads=None, width=None):
  return AttentionPlan(depths, 1, heads, width, "plain")


SD1 = transformer((1, 1, 1, 0), heads=8)
SD2 = transformer((1, 1, 1, 0), width=64, linear=True)
FACES = (0, 1, 1, 1)

# name: (U-Net, input channels, context width, vector width, parameters)
UNETS = {
  "celeba256": (
    UNet(3, 224, (1, 2, 3, 4), 2, plain(FACES, width=32)),
    3, None, None, 274_056_163,
  ),
  "lsun_churches256": (
    UNet(
      4, 192, (1, 2, 2, 4, 4), 2, plain((1, 1, 1, 1, 0), heads=8),
      modulation="scale_shift", resampling="block",
    ),
    4, None, None, 294_966_916,
  ),
  "cin256": (
    UNet(4, 256, (1, 2, 4), 2, transformer((1, 1, 1), width=32)),
    4, 512, None, 394_984_196,
  ),
  "cin256-v2": (
    UNet(3, 192, (1, 2, 3, 5), 2, transformer(FACES, heads=1)),
    3, 512, None, 400_920_579,
  ),
  "text2img256": (
    UNet(3, 192, (1, 2, 3, 5), 2, transformer(FACES, width=32)),
    3, 640, None, 403_623_939,
  ),
  "txt2img-1p4B": (UNet(attention=SD1), 4, 1280, None, 872_300_484),
  "layout2img": (
    UNet(3, 128, (1, 2, 3, 4), 2, transformer((0, 3, 3, 3), 3, width=32)),
    3, 512, None, 246_277_379,
  ),
  "semantic_synthesis": (
    UNet(3, 128, (1, 4, 8), 2, plain((0, 0, 0), heads=8)),
    6, None, None, 215_229_315,
  ),
  "bsr_sr": (
    UNet(3, 160, (1, 2, 2, 4), 2, plain((0, 0, 0, 1), width=32)),
    6, None, None, 113_622_563,
  ),
  "inpainting_big": (
    UNet(
      3, 256, (1, 2, 3, 4), 2, plain(FACES, heads=8), resampling="block"
    ),
    7, None, None, 387_245_827,
  ),
  "rdm-768": (
    UNet(16, 448, (1, 2, 3, 4), 2, transformer((1, 1, 1, 0), width=32)),
    16, 768, None, 1_335_480_400,
  ),
  "sd1": (UNet(attention=SD1), 4, 768, None, 859_520_964),
  "sd1-inpainting": (UNet(attention=SD1), 9, 768, None, 859_535_364),
  "sd2": (UNet(attention=SD2), 4, 1024, None, 865_910_724),
  "sd2-inpainting": (UNet(attention=SD2), 9, 1024, None, 865_925_124),
  "sd2-depth": (UNet(attention=SD2), 5, 1024, None, 865_913_604),
  "x4-upscaler": (
    UNet(
      4, 256, (1, 2, 2, 4), 2,
      transformer(
        FACES, heads=8, linear=True, cross_only=(True, True, True, False)
      ),
      vector="table",
    ),
    7, 1024, 1000, 473_398_020,
  ),
  "sdxl-base": (
    UNet(
      4, 320, (1, 2, 4), 2, transformer((0, 2, 10), 10, None, 64, True),
      vector="mlp",
    ),
    4, 2048, 2816, 2_567_463_684,
  ),
  "sdxl-refiner": (
    UNet(
      4, 384, (1, 2, 4, 4), 2, transformer((0, 4, 4, 0), 4, None, 64, True),
      vector="mlp",
    ),
    4, 1280, 2560, 2_259_526_660,
  ),
}  # fmt: skip
