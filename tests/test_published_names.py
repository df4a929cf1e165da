"""Every parameter of every published network has the name in its file."""

import functools
import math

import pytest
from networks import (
  autoencoder_shapes,
  class_shapes,
  foreign,
  text_shapes,
  unet_shapes,
)
from published_networks import FIRST_STAGES, UNETS

from ldm_jax.nn.encoders.text_encoder import TextEncoder
from ldm_jax.weights.naming.parameter_names import (
  NAMING_SCHEMES,
  Geometry,
  name_table,
)

pytestmark = pytest.mark.slow  # tracing them all takes a minute

PUBLISHED_UNETS = [
  "sd1",
  "sd1-inpainting",
  "sd2",
  "sdxl-base",
  "sdxl-refiner",
  "x4-upscaler",
  "cin256-v2",
  "celeba256",
  "lsun_churches256",
]


@functools.cache
def published_unet(name):
  unet, channels, context, vector, count = UNETS[name]
  plan = unet.attention
  geometry = Geometry(plan.heads, plan.head_width)
  return unet_shapes(unet, channels, context, vector), geometry, count


@functools.cache
def first_stage(name):
  autoencoder, count = FIRST_STAGES[name]
  return autoencoder_shapes(autoencoder), count


def size(sizes):
  return sum(math.prod(shape) for shape in sizes.values())


@pytest.mark.parametrize("scheme", NAMING_SCHEMES)
@pytest.mark.parametrize("name", PUBLISHED_UNETS)
def test_a_published_unet_has_a_name_for_every_parameter(name, scheme):
  sizes, geometry, count = published_unet(name)
  names = name_table("unet", scheme, sizes, geometry)
  assert [row.path for row in names.rows] == list(sizes)
  assert size(foreign(names)) == count


@pytest.mark.parametrize("scheme", NAMING_SCHEMES)
@pytest.mark.parametrize("name", FIRST_STAGES)
def test_a_published_first_stage_has_a_name_for_every_parameter(name, scheme):
  sizes, count = first_stage(name)
  names = name_table("autoencoder", scheme, sizes)
  assert [row.path for row in names.rows] == list(sizes)
  assert len(foreign(names)) == len(sizes)
  assert size(foreign(names)) == count


@functools.cache
def text_encoder(width, depth, projection):
  clip = pytest.importorskip("ldm_jax.nn.encoders.clip_text")
  heads = width // 64
  return text_shapes(
    clip.ClipText(49408, width, depth, heads, projection=projection)
  )


@pytest.mark.parametrize(
  "width, depth, projection, count",
  # As transformers counts its CLIPTextModel and CLIPTextModelWithProjection.
  [
    (768, 12, None, 123_060_480),
    (1024, 24, 1024, 354_032_640),
    (1280, 32, 1280, 694_659_840),
  ],
  ids=["L", "H", "bigG"],
)
@pytest.mark.parametrize("network", ["clip", "open_clip"])
@pytest.mark.parametrize("scheme", NAMING_SCHEMES)
def test_a_text_encoder_has_a_name_for_every_parameter(
  width, depth, projection, count, network, scheme
):
  names = name_table(network, scheme, text_encoder(width, depth, projection))
  assert size(foreign(names)) == count


# Names and shapes of the published files.
KNOWN = {
  ("sd1", "compvis"): {
    "time_embed.0.weight": (1280, 320),
    "input_blocks.0.0.weight": (320, 4, 3, 3),
    "input_blocks.1.0.in_layers.2.weight": (320, 320, 3, 3),
    "input_blocks.1.1.proj_in.weight": (320, 320, 1, 1),
    "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, 768),
    "input_blocks.3.0.op.weight": (320, 320, 3, 3),
    "input_blocks.4.0.skip_connection.weight": (640, 320, 1, 1),
    "middle_block.1.transformer_blocks.0.ff.net.0.proj.weight": (10240, 1280),
    "output_blocks.2.1.conv.weight": (1280, 1280, 3, 3),
    "output_blocks.5.2.conv.weight": (1280, 1280, 3, 3),
    "output_blocks.8.2.conv.weight": (640, 640, 3, 3),
    "output_blocks.11.1.transformer_blocks.0.norm1.bias": (320,),
    "output_blocks.11.0.emb_layers.1.weight": (320, 1280),
    "out.2.weight": (4, 320, 3, 3),
  },
  ("sd1", "diffusers"): {
    "time_embedding.linear_1.weight": (1280, 320),
    "down_blocks.0.downsamplers.0.conv.weight": (320, 320, 3, 3),
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight": (
      (320, 768)
    ),
    "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0.bias": (1280,),
    "up_blocks.0.upsamplers.0.conv.weight": (1280, 1280, 3, 3),
    "up_blocks.3.resnets.2.conv_shortcut.weight": (320, 640, 1, 1),
    "up_blocks.3.attentions.2.proj_out.weight": (320, 320, 1, 1),
    "conv_norm_out.weight": (320,),
  },
  ("sd1", "flax"): {
    "conv_in/kernel": (3, 3, 4, 320),
    "down_blocks_0/attentions_1/transformer_blocks_0/attn1/to_q/kernel": (
      (320, 320)
    ),
    "up_blocks_1/attentions_2/transformer_blocks_0/attn2/to_out_0/bias": (
      (1280,)
    ),
    "mid_block/attentions_0/transformer_blocks_0/ff/net_0/proj/kernel": (
      (1280, 10240)
    ),
    "mid_block/attentions_0/transformer_blocks_0/ff/net_2/kernel": (
      (5120, 1280)
    ),
    "down_blocks_2/downsamplers_0/conv/kernel": (3, 3, 1280, 1280),
    "up_blocks_0/resnets_0/time_emb_proj/kernel": (1280, 1280),
    "conv_norm_out/scale": (320,),
  },
  ("sdxl-base", "compvis"): {
    "label_emb.0.0.weight": (1280, 2816),
    "input_blocks.4.1.proj_in.weight": (640, 640),
    "input_blocks.8.1.transformer_blocks.9.attn2.to_k.weight": (1280, 2048),
    "output_blocks.2.2.conv.weight": (1280, 1280, 3, 3),
    "output_blocks.5.2.conv.weight": (640, 640, 3, 3),
  },
  ("sdxl-base", "diffusers"): {"add_embedding.linear_1.weight": (1280, 2816)},
  ("x4-upscaler", "compvis"): {"label_emb.weight": (1000, 1024)},
  ("x4-upscaler", "diffusers"): {
    "class_embedding.weight": (1000, 1024),
    "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_k.weight": (
      (512, 1024)
    ),
  },
  ("lsun_churches256", "compvis"): {
    "input_blocks.3.0.in_layers.2.weight": (192, 192, 3, 3),
    "input_blocks.1.1.qkv.weight": (576, 192, 1),
    "output_blocks.5.2.out_layers.3.weight": (768, 768, 3, 3),
    "middle_block.1.proj_out.weight": (768, 768, 1),
  },
  ("lsun_churches256", "diffusers"): {
    "down_blocks.0.attentions.0.to_q.weight": (192, 192),
    "down_blocks.0.attentions.0.group_norm.weight": (192,),
    "up_blocks.1.upsamplers.0.conv2.weight": (768, 768, 3, 3),
  },
  ("kl-f8", "compvis"): {
    "encoder.down.1.block.0.nin_shortcut.weight": (256, 128, 1, 1),
    "encoder.down.0.downsample.conv.weight": (128, 128, 3, 3),
    "decoder.mid.attn_1.q.weight": (512, 512, 1, 1),
    "decoder.up.3.upsample.conv.weight": (512, 512, 3, 3),
    "decoder.up.0.block.0.nin_shortcut.weight": (128, 256, 1, 1),
    "decoder.norm_out.weight": (128,),
    "quant_conv.weight": (8, 8, 1, 1),
  },
  ("kl-f8", "diffusers"): {
    "encoder.mid_block.attentions.0.to_out.0.weight": (512, 512),
    "decoder.up_blocks.0.upsamplers.0.conv.weight": (512, 512, 3, 3),
    "decoder.up_blocks.3.resnets.0.conv_shortcut.weight": (128, 256, 1, 1),
    "post_quant_conv.weight": (4, 4, 1, 1),
  },
  ("kl-f8", "flax"): {
    "encoder/mid_block/attentions_0/query/kernel": (512, 512),
    "decoder/mid_block/attentions_0/proj_attn/bias": (512,),
    "decoder/mid_block/attentions_0/group_norm/scale": (512,),
    "decoder/up_blocks_0/resnets_2/conv1/kernel": (3, 3, 512, 512),
  },
  ("vq-f8", "compvis"): {
    "quantize.embedding.weight": (16384, 4),
    "encoder.down.3.attn.1.k.weight": (512, 512, 1, 1),
    "decoder.up.3.attn.2.proj_out.bias": (512,),
  },
  ("vq-f8", "diffusers"): {
    "quantize.embedding.weight": (16384, 4),
    "decoder.up_blocks.0.attentions.2.to_v.weight": (512, 512),
  },
}


@pytest.mark.parametrize("name, scheme", KNOWN)
def test_known_names(name, scheme):
  if name in UNETS:
    sizes, geometry, _ = published_unet(name)
    found = foreign(name_table("unet", scheme, sizes, geometry))
  else:
    found = foreign(name_table("autoencoder", scheme, first_stage(name)[0]))
  assert KNOWN[name, scheme].items() <= found.items()


@pytest.mark.parametrize("scheme", NAMING_SCHEMES)
def test_published_numbers_of_tensors(scheme):
  counts = {}
  for name in ("sd1", "sdxl-base"):
    sizes, geometry, _ = published_unet(name)
    counts[name] = len(foreign(name_table("unet", scheme, sizes, geometry)))
  counts["kl-f8"] = len(
    foreign(name_table("autoencoder", scheme, first_stage("kl-f8")[0]))
  )
  assert counts == {"sd1": 686, "sdxl-base": 1680, "kl-f8": 248}


def test_names_of_ldms_text_encoder_and_class_embedder():
  encoder = text_shapes(TextEncoder(30_522, 1280, 32))
  found = foreign(name_table("text", "compvis", encoder))
  expected = {
    "transformer.token_emb.weight": (30_522, 1280),
    "transformer.pos_emb.emb.weight": (77, 1280),
    "transformer.attn_layers.layers.62.0.weight": (1280,),
    "transformer.attn_layers.layers.62.1.to_q.weight": (512, 1280),
    "transformer.attn_layers.layers.62.1.to_out.bias": (1280,),
    "transformer.attn_layers.layers.63.1.net.0.0.weight": (5120, 1280),
    "transformer.attn_layers.layers.63.1.net.2.weight": (1280, 5120),
    "transformer.norm.weight": (1280,),
  }
  assert expected.items() <= found.items()
  found = foreign(name_table("classes", "compvis", class_shapes(1000, 512)))
  assert found == {"embedding.weight": (1001, 512)}


def test_the_vector_mlp_has_two_names_in_diffusers():
  sizes, _, _ = published_unet("sdxl-refiner")
  geometry = Geometry(vector="class_embedding")
  found = foreign(name_table("unet", "diffusers", sizes, geometry))
  assert found["class_embedding.linear_1.weight"] == (1536, 2560)
  assert not any(name.startswith("add_embedding") for name in found)
