"""Published configs of U-Nets are read and written without a change."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import unet_shapes
from published_configs import (
  CELEBA,
  CHURCHES,
  CONDITIONAL,
  CONFIGS,
  SD1,
  SDXL,
)
from published_networks import UNETS, f32, plain, transformer

from ldm_jax.errors import ConfigError
from ldm_jax.nn.conditioners.embedders import Condition
from ldm_jax.nn.encoder_unet import EncoderUNet
from ldm_jax.nn.layers import upsample
from ldm_jax.nn.unet import AttentionPlan, UNet
from ldm_jax.pretrained.configs.unet_reader import Inputs, inputs, unet
from ldm_jax.pretrained.configs.unet_writer import unet_config


def size(sizes):
  return sum(math.prod(shape) for shape in sizes.values())


# Keys with one valid value or without effect, which are not written.
UNWRITTEN = {
  "addition_embed_type_num_heads",
  "attention_type",
  "class_embeddings_concat",
  "conv_in_kernel",
  "conv_out_kernel",
  "dual_cross_attention",
  "encoder_hid_dim",
  "mid_block_only_cross_attention",
  "resnet_out_scale_factor",
  "time_cond_proj_dim",
  "time_embedding_type",
  "upcast_attention",
}


def unet_size(config):
  sizes = inputs(config)
  shapes = unet_shapes(
    unet(config), sizes.channels, sizes.context, sizes.vector
  )
  return size(shapes)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_published_config_is_the_published_unet(name):
  """With the input sizes of published_networks."""
  read = inputs(CONFIGS[name])
  published, *sizes, _ = UNETS[name]
  assert unet(CONFIGS[name]) == published
  assert [read.channels, read.context, read.vector] == sizes


@pytest.mark.parametrize("name", ["sd1", "sd2", "celeba256"])
def test_a_published_unet_has_its_published_size(name):
  assert unet_size(CONFIGS[name]) == UNETS[name][-1]


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_every_published_unet_has_its_published_size(name):
  assert unet_size(CONFIGS[name]) == UNETS[name][-1]


@pytest.mark.parametrize("name", CONFIGS)
def test_a_unets_config_is_written_as_it_was_read(name):
  config = CONFIGS[name]
  written = json.loads(json.dumps(unet_config(unet(config), inputs(config))))
  for key in config.keys() - UNWRITTEN:
    assert written[key] == config[key], key
  assert unet(written) == unet(config)
  assert inputs(written) == inputs(config)


@pytest.mark.parametrize(
  "module, sizes",
  [
    (UNet(), Inputs(4, 64, 768)),
    (UNet(4, 32, (1, 2), 1, transformer((0, 3), 3, 4)), Inputs(9, 8, 7)),
    # Two levels of one width: their heads are still written as a width.
    (UNet(4, 32, (1, 1), 1, transformer((1, 2), 2, None, 8)), Inputs(4, 8, 7)),
    (
      UNet(
        4, 32, (1, 2), 1, transformer((2, 0), 3, 2), vector="mlp", dropout=0.1,
        modulation="scale_shift", groups=16,
      ),
      Inputs(4, 8, 7, 5, 3),
    ),
    (UNet(4, 32, (1,), 1, transformer((1,), 1, 2), vector="mlp"),
     Inputs(4, 8, 7, 5)),
    (UNet(3, 32, (1, 2), 1, plain((1, 0), width=16)), Inputs(3, 8)),
    (UNet(3, 32, (1, 2), 1, plain((0, 1), heads=1), vector="table"),
     Inputs(3, 8, None, 10)),
    (
      UNet(
        3, 32, (1, 2), 1, plain((1, 1), heads=4), resampling="block",
        modulation="scale_shift",
      ),
      Inputs(3, 8),
    ),
  ],
)  # fmt: skip
def test_a_unet_is_read_as_it_was_written(module, sizes):
  config = unet_config(module, sizes)
  assert unet(config) == module
  assert inputs(config) == sizes


def test_a_flax_config_is_the_same_as_torchs():
  flax = SD1 | {"_class_name": "FlaxUNet2DConditionModel", "dtype": "float32"}
  flax |= {"use_memory_efficient_attention": False, "split_head_dim": False}
  assert unet(flax) == unet(SD1)


def test_missing_keys_mean_diffusers_defaults():
  assert unet(CONDITIONAL) == unet(SD1)
  assert inputs(CONDITIONAL) == Inputs(4, None, 1280)
  # CelebA's network is UNet2DModel's signature, but for the heads' width.
  bare = {"_class_name": "UNet2DModel"}
  assert unet(bare) == unet(CELEBA | {"attention_head_dim": 8})
  assert inputs(bare) == Inputs(3)


REFUSED = [
  (SD1, "_class_name", "UNet3DConditionModel", "one of UNet2DConditionModel"),
  (SD1, "act_fn", "mish", "needed: 'silu' or 'swish'"),
  (SD1, "center_input_sample", True, "needed: null"),
  (SD1, "class_embed_type", "timestep", "needed: null or 'projection'"),
  (SD1, "conv_in_kernel", 1, "needed: 3"),
  (SD1, "dual_cross_attention", True, "needed: null"),
  (SD1, "encoder_hid_dim", 1024, "needed: null"),
  (SD1, "flip_sin_to_cos", False, "needed: True"),
  (SD1, "freq_shift", 1, "needed: 0"),
  (SD1, "layers_per_block", [2, 2, 2, 1], "one number for all levels"),
  (SD1, "mid_block_scale_factor", 1.5, "needed: 1"),
  (SD1, "mid_block_type", "UNetMidBlock2D", "UNetMidBlock2DCrossAttn"),
  (SD1, "norm_eps", 1e-6, "needed: 1e-05"),
  (SD1, "norm_num_groups", None, "a divisor of all"),
  (SD1, "num_attention_heads", 8, "needed: null"),
  (SD1, "resnet_time_scale_shift", "ada_group", "'default' or 'scale_shift'"),
  (SD1, "attention_head_dim", [8, 8, 16, 20], "for all levels"),
  (SD1, "attention_head_dim", 7, "do not divide"),
  (SD1, "attention_head_dim", 0, "one number of heads"),
  (SD1, "block_out_channels", [320, 480, 1280, 1280], "multiples of the first"),
  (SD1, "block_out_channels", 320, "a list of numbers"),
  (SD1, "down_block_types", ["CrossAttnDownBlock2D"], "one per level"),
  (SD1, "up_block_types", ["UpBlock2D"] * 4, "the levels of down_block_types"),
  (SD1, "down_block_types", ["SimpleCrossAttnDownBlock2D"] * 4, "DownBlock2D"),
  (SDXL, "addition_embed_type", "text", "null or 'text_time'"),
  (SDXL, "num_class_embeds", 10, "needed: null"),
  (SDXL, "class_embed_type", "projection", "needed: null"),
  (SDXL, "projection_class_embeddings_input_dim", None, "of the vector"),
  (SDXL, "transformer_layers_per_block", [[1], [2], [10]], "one per level"),
  (SDXL, "reverse_transformer_layers_per_block", [1, 2, 3], "needed: null"),
  (CELEBA, "downsample_type", "fir", "'conv' or 'resnet'"),
  (CELEBA, "upsample_type", "resnet", "needed: 'conv'"),
  (CELEBA, "class_embed_type", "timestep", "needed: null"),
  (CHURCHES, "attn_norm_num_groups", None, "needed: 32"),
  (CHURCHES, "attention_head_dim", [24, 24, 48, 96, 96], "for all levels"),
]  # fmt: skip


@pytest.mark.parametrize("base, key, value, message", REFUSED)
def test_unsupported_configs_are_refused_by_name(base, key, value, message):
  with pytest.raises(ConfigError, match=key) as error:
    unet(base | {key: value})
  assert message in str(error.value)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  "module, sizes, message",
  [
    (UNet(octaves=2), Inputs(4, 64, 768), "octaves=2"),
    (UNet(multipliers=(2, 4, 4, 4)), Inputs(4, 64, 768), "start with 1"),
    (UNet(vector="mlp"), Inputs(4, 64, 768), "give both or none"),
    (UNet(), Inputs(4, 64), "a context of None"),
    (UNet(resampling="block"), Inputs(4, 64, 768), "resampling='block'"),
    (UNet(attention=transformer((1, 1, 1, 2), 1, 8)), Inputs(4, 64, 768),
     "as deep as the last level"),
    (UNet(attention=plain((1, 1, 1, 0), 8), vector="mlp"),
     Inputs(4, 64, None, 9), "vector='mlp'"),
  ],
)  # fmt: skip
def test_unets_without_a_diffusers_class_are_refused(module, sizes, message):
  with pytest.raises(ConfigError) as error:
    unet_config(module, sizes)
  assert message in str(error.value)


def test_a_unet_whose_channels_do_not_divide_into_heads_is_refused():
  with pytest.raises(ValueError, match="320 channels do not divide into heads"):
    UNet(attention=transformer((1, 1, 1, 0), 1, 7))


@pytest.mark.parametrize("size", [(5, 3), (7, 8), (8, 8)])
def test_odd_sides_come_back_at_their_size(size):
  """An odd side n is halved to (n + 1) / 2, and doubled and cut again."""
  module = UNet(3, 8, (1, 1, 1), 1, plain((0, 0, 0), heads=1), groups=4)
  shapes = jax.eval_shape(
    lambda x, t: module.init_with_output(jax.random.key(0), x, t, Condition()),
    f32(1, *size, 3),
    f32(1),
  )
  assert shapes[0].shape == (1, *size, 3)
  assert module.size_multiple == 1
  assert module.clone(resampling="block").size_multiple == 4


@pytest.mark.parametrize("small, size", [(2, 3), (9, 17), (33, 65)])
def test_doubling_and_cutting_takes_the_nearest_pixel(small, size):
  """torch's nearest interpolation reads pixel i small // size."""
  row = jnp.arange(small, dtype=jnp.float32).reshape(1, 1, small, 1)
  found = upsample(row)[0, 0, :size, 0]
  np.testing.assert_array_equal(found, np.arange(size) * small // size)


def test_lcms_embedding_of_guidance_is_read_and_written():
  config = dict(SD1) | {"time_cond_proj_dim": 256}
  module = unet(config)
  assert module.guidance_width == 256
  written = unet_config(module, inputs(config))
  assert written["time_cond_proj_dim"] == 256 and unet(written) == module
  shapes = unet_shapes(module.clone(channels=32), 4, 768)
  assert shapes["guidance/kernel"] == (256, 32)
  with pytest.raises(ConfigError, match="time_cond_proj_dim"):
    unet(dict(SD1) | {"time_cond_proj_dim": 3})


def test_the_encoder_of_a_unet_gives_logits():
  network = EncoderUNet(
    *(4, 16, (1, 2), 1),
    AttentionPlan((0, 1), heads=2, kind="plain"),
    groups=4,
    classes=7,
  )
  xt, t = jax.ShapeDtypeStruct((2, 8, 8, 4), "float32"), jnp.ones(2)
  variables = jax.eval_shape(network.init, jax.random.key(0), xt, t)
  logits = jax.eval_shape(network.apply, variables, xt, t)
  assert logits.shape == (2, 7) and logits.dtype == jnp.float32
