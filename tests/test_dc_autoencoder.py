"""DC-AE: what its layers compute, its configs, names and files."""

import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import random_like, random_variables
from single_files import VAE, write_family

import ldm_jax
from ldm_jax import config_json
from ldm_jax.config_json import from_json, to_json
from ldm_jax.errors import ConfigError, WeightsError
from ldm_jax.latent_diffusion import LatentDiffusion, Parameters
from ldm_jax.nn.deep_compression.autoencoder import DCAutoencoder
from ldm_jax.nn.deep_compression.blocks import (
  average_channels,
  channel_to_space,
  repeat_channels,
  space_to_channel,
)
from ldm_jax.nn.deep_compression.levels import DCLevel, DCStack
from ldm_jax.nn.deep_compression.linear_attention import (
  DepthwiseConv,
  GroupedDense,
  relu_attention,
)
from ldm_jax.nn.discriminator import PatchDiscriminator
from ldm_jax.nn.first_stage import FirstStage
from ldm_jax.nn.unet import AttentionPlan, UNet
from ldm_jax.pretrained.configs.dc_autoencoder_config import (
  DC,
  dc_autoencoder,
  dc_autoencoder_config,
)
from ldm_jax.pretrained.networks import build
from ldm_jax.pretrained.open_model import LoadOptions, open_model
from ldm_jax.pretrained.single_network.dc_autoencoder_file import (
  find_dc_autoencoder,
)
from ldm_jax.pretrained.single_network.initial_shapes import abstract
from ldm_jax.runtime.optimizer import Optimizer
from ldm_jax.training.autoencoder import AutoencoderTask
from ldm_jax.training.first_stage.autoencoder_state import Frozen
from ldm_jax.weights.naming.convert import convert, revert, shapes
from ldm_jax.weights.naming.parameter_names import name_table
from ldm_jax.weights.safetensors_files import read_safetensors

ATTENDING = DCLevel(8, 1, True, (3,))
SMALL = DCAutoencoder(
  DCStack((DCLevel(4, 0), DCLevel(8, 1), ATTENDING), head_width=4),
  DCStack(
    (DCLevel(4, 0), DCLevel(8, 1, norm="batch", activation="relu"), ATTENDING),
    head_width=4,
  ),
  latent_channels=4,
)
CONFIG = dc_autoencoder_config(SMALL, 0.5)


def normal(*shape):
  rng = np.random.default_rng(sum(shape))
  return rng.standard_normal(shape, np.float32)


def test_pixels_become_channels_in_torchs_order():
  x = normal(2, 4, 6, 3)
  found = np.asarray(space_to_channel(jnp.asarray(x)))
  assert found.shape == (2, 2, 3, 12)
  for c, i, j in itertools.product(range(3), range(2), range(2)):
    np.testing.assert_array_equal(
      found[..., 4 * c + 2 * i + j], x[:, i::2, j::2, c]
    )
  np.testing.assert_array_equal(channel_to_space(jnp.asarray(found)), x)


def test_averages_invert_repetitions():
  x = jnp.asarray(normal(2, 3, 3, 4))
  np.testing.assert_allclose(
    average_channels(repeat_channels(x, 12), 4), x, rtol=1e-6
  )
  np.testing.assert_array_equal(repeat_channels(x, 8)[..., 5], x[..., 2])


def test_linear_attention_is_attention_with_products_for_scores():
  q, k, v = (normal(2, 11, 3, 8 + i)[..., :8] + 0.5 for i in range(3))
  found = relu_attention(*map(jnp.asarray, (q, k, v)))
  q, k, v = (x.astype(np.float64) for x in (q.clip(0), k.clip(0), v))
  scores = np.einsum("blnd,bmnd->bnlm", q, k)
  weights = scores / scores.sum(-1, keepdims=True)
  np.testing.assert_allclose(
    found, np.einsum("bnlm,bmnd->blnd", weights, v), atol=1e-5
  )


def test_linear_attention_of_nothing_is_zero_with_a_finite_gradient():
  q = jnp.asarray([[1.0, -1.0]])[None, :, None]
  k = jnp.asarray([[-1.0, 1.0]])[None, :, None]
  total = lambda q, k: relu_attention(q, k, jnp.ones_like(k)).sum()
  assert total(q, k) == 0
  for grad in jax.grad(total, (0, 1))(q, k):
    assert np.isfinite(grad).all()


@pytest.mark.parametrize("size", [1, 3, 5])
def test_a_depthwise_convolution_is_one_of_as_many_groups(size):
  x = jnp.asarray(normal(2, 6, 4, 7))
  layer = DepthwiseConv(size, True, "float32")
  variables = random_variables(layer, x)
  found = layer.apply(variables, x)
  half = size // 2
  expected = jax.lax.conv_general_dilated(
    x,
    variables["params"]["kernel"],
    (1, 1),
    ((half, half), (half, half)),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=7,
  )
  expected = expected + variables["params"]["bias"]
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_matrix_per_group_mixes_no_other_channels():
  x = jnp.asarray(normal(1, 2, 2, 12))
  layer = GroupedDense(4, "float32")
  variables = random_variables(layer, x)
  kernel = np.asarray(variables["params"]["kernel"])[0, 0]
  found = layer.apply(variables, x)
  for group in range(3):
    own = slice(4 * group, 4 * group + 4)
    expected = np.asarray(x)[..., own] @ kernel[:, own]
    np.testing.assert_allclose(found[..., own], expected, atol=1e-5)


@pytest.fixture(scope="module")
def variables():
  images, noise = jnp.zeros((1, 4, 4, 3)), jnp.zeros((1, 1, 1, 4))
  drawn = random_variables(SMALL, images, noise)
  positive = lambda path, leaf: (
    jnp.abs(leaf) + 0.5 if path[-1].key == "var" else leaf
  )
  return jax.tree_util.tree_map_with_path(positive, drawn)


def test_it_is_a_first_stage_of_stride_4(variables):
  assert isinstance(SMALL, FirstStage)
  assert SMALL.stride == 4 and SMALL.latent_shape(8, 12) == (2, 3, 4)
  with pytest.raises(ValueError, match=r"multiple of 4 .*try 8"):
    SMALL.latent_shape(8, 9)
  images = jnp.asarray(normal(2, 8, 12, 3))
  encode = jax.jit(lambda v, x: SMALL.apply(v, x, method="encode").mode())
  latents = encode(variables, images)
  assert latents.shape == (2, 2, 3, 4) and latents.dtype == jnp.float32
  found, loss = jax.jit(SMALL.apply)(variables, images, latents)
  assert found.shape == images.shape and loss == 0
  half = SMALL.clone(dtype="bfloat16")
  near, _ = jax.jit(half.apply)(variables, images, latents)
  assert near.dtype == jnp.float32
  error = jnp.linalg.norm(near - found) / jnp.linalg.norm(found)
  assert 0 < error < 0.05


def test_it_is_trained_with_a_discriminator_and_fixed_statistics():
  """The decoder's last convolution weighs the adversarial gradient."""
  optimizer = Optimizer(1e-3, weight_decay=0.0)
  residual = DCLevel(4, 1, norm="batch", activation="relu")
  task = AutoencoderTask(
    DCAutoencoder(
      DCStack((DCLevel(4, 0), DCLevel(4, 1, True)), head_width=4),
      DCStack((DCLevel(4, 0), residual)),
      latent_channels=2,
    ),
    perceptual=None,
    discriminator=PatchDiscriminator(width=4, layers=1),
    optimizer=optimizer,
    critic_optimizer=optimizer,
    disc_start=0,
  )
  rng = np.random.default_rng(0)
  batch = {"image": jnp.asarray(rng.integers(0, 256, (2, 8, 8, 3), np.uint8))}
  key = jax.random.key(0)
  before = jax.jit(task.init, static_argnums=2)(key, batch, Frozen(None))
  after, metrics = jax.jit(task.step)(before, Frozen(None), batch, key)
  assert metrics["d_weight"] > 0 and np.isfinite(metrics["loss"])

  def compare(path, old, new):
    assert jnp.isfinite(new).all()
    is_fixed = path[-1].key in ("mean", "var")
    assert (old == new).all() == is_fixed, path

  jax.tree_util.tree_map_with_path(
    compare, before.params["autoencoder"], after.params["autoencoder"]
  )


def test_the_config_comes_back_and_a_runs_too():
  assert dc_autoencoder(json.loads(json.dumps(CONFIG))) == (SMALL, 0.5)
  assert from_json(to_json(SMALL)) == SMALL
  assert config_json.class_name(DCStack) == "DCStack"
  module, scale = dc_autoencoder({"_class_name": "AutoencoderDC"})
  assert (module.stride, module.latent_channels, scale) == (32, 32, 1)
  assert not any(level.has_attention for level in module.encoder_stack.levels)


@pytest.mark.parametrize(
  ("key", "value"),
  [
    ("in_channels", 4),
    ("latent_channels", 3),
    ("latent_channels", 0),
    ("attention_head_dim", 9),
    ("encoder_block_types", "MBConv"),
    ("encoder_block_types", ["ResBlock"]),
    ("decoder_block_out_channels", [4, 8, 8, 8]),
    ("decoder_block_out_channels", [4, 8, 64]),
    ("encoder_block_out_channels", [4, 6, 8]),
    ("encoder_layers_per_block", [1, 0, 1]),
    ("encoder_layers_per_block", [1, 1, 10**6]),
    ("decoder_qkv_multiscales", [[], [], [4]]),
    ("decoder_qkv_multiscales", [[], []]),
    ("decoder_qkv_multiscales", 5),
    ("decoder_norm_types", "layer_norm"),
    ("decoder_act_fns", ["relu", "silu", None]),
    ("decoder_conv_act_fn", "tanh"),
    ("downsample_block_type", "average"),
    ("upsample_block_type", "conv"),
    ("encoder_out_shortcut", None),
    ("scaling_factor", 0),
    ("shift_factor", 0.1),
  ],
)
def test_other_configs_are_refused_in_one_line(key, value):
  with pytest.raises(ConfigError, match=r"^AutoencoderDC: [^\n]*$"):
    build(CONFIG | {key: value})


def test_what_diffusers_cannot_hold_is_refused():
  stack = SMALL.encoder_stack
  wide = dataclasses.replace(stack, head_width=8)
  with pytest.raises(ConfigError, match="one width of heads"):
    dc_autoencoder_config(SMALL.clone(encoder_stack=wide))
  with pytest.raises(ConfigError, match="norm='rms'"):
    dc_autoencoder_config(SMALL.clone(encoder_stack=SMALL.decoder_stack))


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: DCLevel(scales=(3,)), "has_attention=True"),
    (lambda: DCLevel(has_attention=True, scales=(2,)), "odd"),
    (lambda: DCLevel(has_attention=True, activation="relu"), "silu"),
    (lambda: DCStack((DCLevel(),)), "two levels"),
    (lambda: DCStack((DCLevel(), DCLevel(blocks=0))), "needs blocks"),
  ],
)
def test_impossible_levels_are_refused(make, message):
  with pytest.raises(ValueError, match=message):
    make()


@pytest.mark.parametrize("resampling", ["pixels", "conv"])
@pytest.mark.parametrize("finest", [0, 1])
@pytest.mark.parametrize("scheme", ["diffusers", "compvis"])
def test_names_there_and_back(finest, resampling, scheme):
  first, *rest = SMALL.encoder_stack.levels
  levels = (dataclasses.replace(first, blocks=finest), *rest)
  stack = DCStack(levels, resampling, head_width=4)
  module = SMALL.clone(encoder_stack=stack, decoder_stack=stack)
  params = abstract(module, {})["params"]
  table = name_table("dc_autoencoder", scheme, shapes(params))
  rng = np.random.default_rng(0)
  drawn = jax.tree.map(lambda s: rng.standard_normal(s.shape, "f4"), params)
  tensors = revert(table, drawn)
  jax.tree.map(np.testing.assert_array_equal, convert(table, tensors), drawn)
  image = "decoder.conv_out" if finest else "decoder.conv_out.conv"
  assert scheme == "compvis" or f"{image}.weight" in tensors


def test_a_folder_and_a_file_hold_everything(tmp_path, variables):
  folder, file = str(tmp_path / "folder"), str(tmp_path / "one.safetensors")
  ldm_jax.save_pretrained(SMALL, variables, folder, latent_scale=0.5)
  ldm_jax.save_single_file(SMALL, variables, file, latent_scale=0.5)
  both = ldm_jax.from_pretrained(folder), ldm_jax.from_single_file(file)
  for module, read in both:
    assert module == SMALL
    jax.tree.map(np.testing.assert_array_equal, read, variables)
  written = f"{folder}/diffusion_pytorch_model.safetensors"
  counts = [n for n in read_safetensors(written) if "num_batches" in n]
  assert counts == ["decoder.up_blocks.1.1.norm.num_batches_tracked"]
  described = ldm_jax.inspect(folder)["networks"]["vae"]
  assert described["class"] == "AutoencoderDC"
  with pytest.raises(WeightsError, match=r"folder with its config\.json"):
    ldm_jax.from_single_file(written)
  made = ldm_jax.convert(ldm_jax.ConvertRequest(folder, str(tmp_path / "to")))
  assert made.format
  again = ldm_jax.from_pretrained(str(tmp_path / "to"))[1]
  jax.tree.map(np.testing.assert_array_equal, again, variables)


def test_it_replaces_the_autoencoder_of_a_model(tmp_path, variables):
  folder = str(tmp_path / "vae")
  ldm_jax.save_pretrained(SMALL, variables, folder, latent_scale=0.5)
  path = write_family(tmp_path / "x.safetensors", "sd1", without=[VAE])
  loaded = open_model(path, LoadOptions(vae=folder, dtype="bfloat16"))
  assert loaded.model.first_stage == SMALL.clone(dtype="bfloat16")
  assert loaded.params.latent_scale == 0.5


def test_a_lone_file_is_read_if_its_layout_is_published():
  """SANA's f32c32; tensors of one number take no memory."""
  levels = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3
  config = {
    "_class_name": DC.kind,
    "encoder_block_types": levels,
    "decoder_block_types": levels,
    "downsample_block_type": "conv",
    "upsample_block_type": "interpolate",
  }
  module = build(config)
  names = shapes(abstract(module, config)["params"])
  for scheme in ("diffusers", "compvis"):
    table = name_table("dc_autoencoder", scheme, names)
    tensors = {
      row.foreign_name: np.broadcast_to(np.float32(0), row.foreign_shape())
      for row in table.rows
    }
    found = find_dc_autoencoder(tensors)
    assert found.scheme == scheme and build(found.config) == module
  assert find_dc_autoencoder({"x": np.zeros(1)}) is None
  tensors["decoder.project_in.main.conv.weight"] = np.zeros((1024, 64, 3, 3))
  with pytest.raises(WeightsError, match="no published layout; give a folder"):
    find_dc_autoencoder(tensors)


def test_a_whole_model_with_it_goes_out_and_comes_back(tmp_path, variables):
  attention = AttentionPlan((0,), heads=1, kind="plain")
  unet = UNet(4, 8, (1,), 1, attention, groups=4)
  model = LatentDiffusion(SMALL, unet, ())
  key = jax.random.key(0)
  init = lambda: model.init(key, {}, (1, 2, 2, 4))
  trained = random_like(jax.eval_shape(init))
  params = Parameters(variables, jnp.float32(0.5), {}, trained["unet"])
  folder, file = str(tmp_path / "folder"), str(tmp_path / "one.safetensors")
  ldm_jax.save_pretrained(model, params, folder)
  ldm_jax.save_single_file(model, params, file)
  both = ldm_jax.from_pretrained(folder), ldm_jax.from_single_file(file)
  for read, own in both:
    assert read.first_stage == SMALL and own.latent_scale == 0.5
    jax.tree.map(np.testing.assert_array_equal, own.first_stage, variables)
    jax.tree.map(np.testing.assert_array_equal, own.unet, params.unet)


def test_blocks_are_recomputed_if_asked_for(variables):
  images, noise = jnp.zeros((1, 4, 4, 3)), jnp.zeros((1, 1, 1, 4))
  for remat, is_there in (("off", False), ("dots", True), ("full", True)):
    module = SMALL.clone(remat=remat)
    traced = jax.make_jaxpr(
      lambda v, module=module: module.apply(v, images, noise)
    )(variables)
    assert ("remat" in str(traced)) == is_there
