"""Names and shapes are those that diffusers and transformers give.

Small networks of equal geometry are compared; and diffusers' own readers of
single files read those written here.
"""

import numpy as np
import pytest
from networks import (
  autoencoder_shapes,
  foreign,
  random_params,
  text_shapes,
  unet_shapes,
)
from published_networks import plain, transformer

from ldm_jax.nn.autoencoder import Autoencoder, ConvStack
from ldm_jax.nn.bottleneck import VectorQuantizer
from ldm_jax.nn.encoders.text_encoder import TextEncoder
from ldm_jax.nn.unet import UNet
from ldm_jax.weights.naming.convert import convert, revert
from ldm_jax.weights.naming.parameter_names import Geometry, name_table

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
clip = pytest.importorskip("ldm_jax.nn.encoders.clip_text")

pytestmark = pytest.mark.slow

DOWN, CROSS = "DownBlock2D", "CrossAttnDownBlock2D"
ATTEND, RESNET = "AttnDownBlock2D", "ResnetDownsampleBlock2D"


def rising(types):
  """The up blocks that mirror the down blocks."""
  return [kind.replace("Down", "Up") for kind in reversed(types)]


def state_shapes(model):
  return {
    name.removeprefix("text_model."): tuple(tensor.shape)
    for name, tensor in model.state_dict().items()
    if not name.endswith("position_ids")
  }


def tensors_of(names, params):
  return {
    name: torch.from_numpy(np.ascontiguousarray(tensor))
    for name, tensor in revert(names, params).items()
  }


def assert_same(found, expected):
  assert found.keys() == expected.keys()
  for name, tensor in expected.items():
    assert torch.equal(found[name], tensor), name


def unet_of(plan, multipliers, blocks=2, *, inputs=4, **options):
  """The network, its inputs, and the part of diffusers' config all have."""
  unet = UNet(4, 32, multipliers, blocks, plan, groups=8, **options)
  kinds = [CROSS if depth else DOWN for depth in plan.depths]
  width = plan.head_width
  heads = [plan.heads or 32 * m // width for m in multipliers]
  config = {
    "in_channels": inputs,
    "out_channels": 4,
    "block_out_channels": [32 * m for m in multipliers],
    "layers_per_block": blocks,
    "down_block_types": kinds,
    "up_block_types": rising(kinds),
    "attention_head_dim": heads,
    "norm_num_groups": 8,
    "cross_attention_dim": 48,
    "use_linear_projection": plan.is_linear,
    # The middle is as deep as the last entry says, attending or not.
    "transformer_layers_per_block": [
      *(max(depth, 1) for depth in plan.depths[:-1]),
      plan.mid_depth,
    ],
  }
  return unet, config


SIZES = {
  "addition_embed_type": "text_time",
  "addition_time_embed_dim": 4,
  "projection_class_embeddings_input_dim": 40,
}
UPSCALER = transformer(
  (0, 1, 1), heads=4, linear=True, cross_only=(True, True, False)
)

# name: (ours and their config, more of their config, width of the vector)
UNETS = {
  "sd1": (unet_of(transformer((1, 1, 1, 0), heads=4), (1, 2, 4, 4)), {}, None),
  "sd2": (
    unet_of(transformer((1, 1, 0), width=16, linear=True), (1, 2, 2)),
    {},
    None,
  ),
  "inpainting": (
    unet_of(transformer((1, 0), heads=2), (1, 2), 1, inputs=9),
    {},
    None,
  ),
  "sdxl": (
    unet_of(transformer((0, 2, 3), 3, None, 16, True), (1, 2, 4), vector="mlp"),
    SIZES,
    40,
  ),
  "refiner": (
    unet_of(
      transformer((0, 2, 2, 0), 2, None, 16, True), (1, 2, 4, 4), vector="mlp"
    ),
    SIZES,
    40,
  ),
  "projection": (
    unet_of(transformer((1, 0), heads=2), (1, 2), vector="mlp"),
    {
      "class_embed_type": "projection",
      "projection_class_embeddings_input_dim": 40,
    },
    40,
  ),
  "upscaler": (
    unet_of(UPSCALER, (1, 2, 2), inputs=7, vector="table"),
    {"num_class_embeds": 10, "only_cross_attention": UPSCALER.cross_only},
    10,
  ),
}


def both_tables(name):
  (unet, config), extra, vector = UNETS[name]
  config = {**config, **extra}
  sizes = unet_shapes(unet, config["in_channels"], 48, vector)
  is_class = "class_embed_type" in config
  word = "class_embedding" if is_class else "add_embedding"
  names = [
    name_table("unet", scheme, sizes, Geometry(vector=word))
    for scheme in ("diffusers", "compvis")
  ]
  return sizes, config, names


@pytest.mark.parametrize("name", UNETS)
def test_unet(name):
  _, config, (names, _) = both_tables(name)
  model = diffusers.UNet2DConditionModel(**config)
  assert foreign(names) == state_shapes(model)


@pytest.mark.parametrize("name", UNETS)
def test_diffusers_reads_a_unet_of_compvis(name):
  from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

  sizes, config, (names, compvis) = both_tables(name)
  params = random_params(sizes)
  single = {
    f"model.diffusion_model.{k}": v
    for k, v in tensors_of(compvis, params).items()
  }
  found = convert_ldm_unet_checkpoint(single, config)
  assert_same(found, tensors_of(names, params))


@pytest.mark.parametrize("resampling", ["conv", "block"])
def test_unet_with_plain_attention(resampling):
  """LDM's unconditional U-Nets, diffusers' UNet2DModel."""
  unet = UNet(
    3, 32, (1, 2, 2), 1, plain((0, 1, 1), width=16), groups=8,
    resampling=resampling,
  )  # fmt: skip
  sampled = "resnet" if resampling == "block" else "conv"
  first = RESNET if resampling == "block" else DOWN
  kinds = [first, ATTEND, ATTEND]
  model = diffusers.UNet2DModel(
    block_out_channels=(32, 64, 64),
    layers_per_block=1,
    down_block_types=kinds,
    up_block_types=[
      "AttnUpBlock2D",
      "AttnUpBlock2D",
      "ResnetUpsampleBlock2D" if resampling == "block" else "UpBlock2D",
    ],
    downsample_type=sampled,
    upsample_type=sampled,
    attention_head_dim=16,
    norm_num_groups=8,
  )
  names = name_table("unet", "diffusers", unet_shapes(unet, 3))
  assert foreign(names) == state_shapes(model)


def test_diffusers_splits_stacked_projections_in_the_same_way():
  """As in its former converter of LDM's unconditional models."""
  from diffusers.pipelines.stable_diffusion import convert_from_ckpt

  unet = UNet(3, 32, (1, 2), 1, plain((0, 1), width=16), groups=8)
  sizes = unet_shapes(unet, 3)
  params = random_params(sizes)
  geometry = Geometry(head_width=16)
  single = tensors_of(name_table("unet", "compvis", sizes, geometry), params)
  place = "mid_block.attentions.0.to_"
  found = {}
  for leaf in ("weight", "bias"):
    convert_from_ckpt.assign_to_checkpoint(
      [],
      found,
      single,
      {
        f"middle_block.1.qkv.{leaf}": {
          word: f"{place}{word[0]}.{leaf}" for word in ("query", "key", "value")
        }
      },
      config={"num_head_channels": 16},
    )
  expected = tensors_of(name_table("unet", "diffusers", sizes), params)
  for name, tensor in found.items():
    assert torch.equal(tensor.reshape(expected[name].shape), expected[name]), (
      name
    )
  assert len(found) == 6


def vae_of(multipliers, levels=(), *, blocks=2, bottleneck=None, mid=True):
  """The autoencoder, and its diffusers config."""
  trunk = ConvStack(16, multipliers, blocks, levels, mid, groups=8)
  ours = Autoencoder(trunk, 4, *([bottleneck] if bottleneck else []))
  kinds = [
    "AttnDownEncoderBlock2D" if level in levels else "DownEncoderBlock2D"
    for level in range(len(multipliers))
  ]
  config = {
    "block_out_channels": [16 * m for m in multipliers],
    "down_block_types": kinds,
    "up_block_types": [
      kind.replace("DownEncoder", "UpDecoder") for kind in reversed(kinds)
    ],
    "layers_per_block": blocks,
    "latent_channels": 4,
    "norm_num_groups": 8,
    "mid_block_add_attention": mid,
  }
  return ours, config


KLS = {
  "f8": vae_of((1, 2, 4, 4)),
  "f4": vae_of((1, 2, 4), blocks=1),
  "attends": vae_of((1, 2, 2), (1, 2)),
  "no attention": vae_of((1, 2), mid=False),
}


@pytest.mark.parametrize("name", KLS)
def test_autoencoder(name):
  ours, config = KLS[name]
  names = name_table("autoencoder", "diffusers", autoencoder_shapes(ours))
  model = diffusers.AutoencoderKL(**config)
  assert foreign(names) == state_shapes(model)


@pytest.mark.parametrize("levels, mid", [((), True), ((2,), True), ((), False)])
def test_vector_quantised_autoencoder(levels, mid):
  ours, config = vae_of(
    (1, 2, 2), levels, bottleneck=VectorQuantizer(9, 4), mid=mid
  )
  names = name_table("autoencoder", "diffusers", autoencoder_shapes(ours))
  model = diffusers.VQModel(**config, num_vq_embeddings=9)
  assert foreign(names) == state_shapes(model)


@pytest.mark.parametrize("name", ["f8", "f4", "no attention"])
def test_diffusers_reads_an_autoencoder_of_compvis(name):
  from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

  ours, config = KLS[name]
  sizes = autoencoder_shapes(ours)
  params = random_params(sizes)
  single = {
    f"first_stage_model.{k}": v
    for k, v in tensors_of(
      name_table("autoencoder", "compvis", sizes), params
    ).items()
  }
  found = convert_ldm_vae_checkpoint(single, config)
  expected = tensors_of(name_table("autoencoder", "diffusers", sizes), params)
  assert_same(found, expected)


def encoder_of(projection):
  """The text encoder, and the transformers model."""
  ours = clip.ClipText(50, 16, 2, 2, 7, projection=projection)
  config = transformers.CLIPTextConfig(
    vocab_size=50,
    hidden_size=16,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=7,
    projection_dim=projection or 16,
  )
  name = "CLIPTextModel" + ("WithProjection" if projection else "")
  return ours, getattr(transformers, name)(config)


@pytest.mark.parametrize("projection", [None, 5])
@pytest.mark.parametrize("network", ["clip", "open_clip"])
def test_text_encoder_of_clip(projection, network):
  ours, model = encoder_of(projection)
  names = name_table(network, "diffusers", text_shapes(ours))
  assert foreign(names) == state_shapes(model)


@pytest.mark.parametrize("projection", [None, 16])
def test_diffusers_reads_a_text_encoder_of_open_clip(projection):
  """Its reader takes the stack's third from the projection's rows."""
  from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint

  ours, model = encoder_of(projection)
  sizes = text_shapes(ours)
  params = random_params(sizes)
  single = {
    f"encoder.{k}": v
    for k, v in tensors_of(
      name_table("open_clip", "compvis", sizes), params
    ).items()
  }
  found = convert_open_clip_checkpoint(model, single, "encoder.")
  found = {k.removeprefix("text_model."): v for k, v in found.items()}
  expected = tensors_of(name_table("open_clip", "diffusers", sizes), params)
  assert_same(found, expected)


def test_text_encoder():
  from diffusers.pipelines.latent_diffusion import pipeline_latent_diffusion

  config = pipeline_latent_diffusion.LDMBertConfig(
    vocab_size=11,
    max_position_embeddings=7,
    encoder_layers=3,
    encoder_ffn_dim=32,
    d_model=8,
    head_dim=5,
    encoder_attention_heads=2,
  )
  model = pipeline_latent_diffusion.LDMBertModel(config)
  sizes = text_shapes(TextEncoder(11, 8, 3, 2, 5, length=7))
  names = name_table("text", "diffusers", sizes)
  expected = state_shapes(model)
  logits = {k: v for k, v in expected.items() if k.startswith("to_logits.")}
  assert foreign(names) | logits == expected
  tensors = {k: v.numpy() for k, v in model.state_dict().items()}
  assert convert(names, tensors)["up_2"]["kernel"].shape == (8, 32)
