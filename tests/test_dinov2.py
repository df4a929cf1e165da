"""DINOv2's encoder: positions, names, folders, files, what it refuses."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import random_variables

import ldm_jax
from ldm_jax.errors import ConfigError, WeightsError
from ldm_jax.nn.encoders.dinov2 import DinoV2
from ldm_jax.nn.encoders.position_grid import (
  interpolation_matrix,
  resize_positions,
)
from ldm_jax.pretrained.configs.text_encoder_config import gated_width
from ldm_jax.pretrained.metric_networks.dinov2 import open_dinov2
from ldm_jax.pretrained.networks import build
from ldm_jax.weights.naming.convert import convert, revert, shapes
from ldm_jax.weights.naming.parameter_names import name_table
from ldm_jax.weights.safetensors_files import write_safetensors

SMALL = DinoV2(12, 4, width=64, depth=2, heads=1, hidden=24)
GATED = SMALL.clone(feed_forward="swiglu", registers=2, is_antialiased=True)
CONFIG = {
  "architectures": ["Dinov2Model"],
  "hidden_size": 16,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "mlp_ratio": 3,
  "image_size": 12,
  "patch_size": 4,
}


@pytest.fixture(scope="module", params=[SMALL, GATED], ids=["mlp", "swiglu"])
def network(request):
  """A small encoder and random variables."""
  images = jnp.zeros((1, 12, 12, 3))
  return request.param, random_variables(request.param, images)


def test_positions_antialias_as_jax_does():
  grid = jax.random.normal(jax.random.key(0), (7, 7, 3))
  for shape in ((3, 5), (7, 12)):
    np.testing.assert_allclose(
      resize_positions(grid, shape, is_antialiased=True),
      jax.image.resize(grid, (*shape, 3), "cubic", precision="highest"),
      atol=1e-5,
    )


@pytest.mark.parametrize("is_antialiased", [False, True])
def test_positions_keep_constants_and_their_own_size(is_antialiased):
  for offset in (0.0, 0.1):
    for length in (3, 16, 37, 50):
      matrix = interpolation_matrix(37, length, is_antialiased, offset)
      np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-6)
  np.testing.assert_array_equal(
    interpolation_matrix(5, 5, is_antialiased), np.eye(5)
  )


def test_an_encoder_has_a_state_for_the_image_and_each_patch(network):
  module, variables = network
  rng = np.random.default_rng(0)
  images = jax.device_put(rng.uniform(-1, 1, (2, 8, 16, 3)).astype("float32"))
  apply = jax.jit(module.apply)
  found = apply(variables, images)
  assert found.class_token.shape == (2, 64)
  assert found.patches.shape == (2, 2, 4, 64)
  alone = apply(variables, images[1:])
  np.testing.assert_allclose(
    found.patches[1], alone.patches[0], rtol=1e-4, atol=1e-4
  )
  with pytest.raises(ValueError, match="8 x 15 pixels"):
    module.apply(variables, images[:, :, :15])


@pytest.mark.parametrize("scheme", ["diffusers", "compvis"])
def test_parameters_have_names_in_both_schemes(network, scheme):
  module, variables = network
  params = variables["params"]
  table = name_table("dinov2", scheme, shapes(params))
  tensors = revert(table, params)
  jax.tree.map(np.testing.assert_array_equal, convert(table, tensors), params)
  block = params["block_1"]
  if scheme == "compvis":
    kernels = [block["attention"][name]["kernel"] for name in "qkv"]
    np.testing.assert_array_equal(
      tensors["blocks.1.attn.qkv.weight"], np.concatenate(kernels, 1).T
    )
  elif module.feed_forward == "swiglu":
    kernels = [block[name]["kernel"] for name in ("gate", "value")]
    np.testing.assert_array_equal(
      tensors["encoder.layer.1.mlp.weights_in.weight"],
      np.concatenate(kernels, 1).T,
    )


def test_a_file_of_the_authors_is_its_encoder(tmp_path, network):
  module, variables = network
  table = name_table("dinov2", "compvis", shapes(variables["params"]))
  tensors = revert(table, variables["params"])
  tensors["mask_token"] = np.zeros((1, 64), np.float32)
  path = str(tmp_path / "dinov2_vits14_pretrain.safetensors")
  write_safetensors(path, tensors)
  found, read = open_dinov2(path)
  offset = 0.0 if module.registers else 0.1
  assert found == module.clone(position_offset=offset)
  jax.tree.map(np.testing.assert_array_equal, read, dict(variables))


@pytest.mark.parametrize("ratio", [1, 4])
def test_a_saved_folder_is_its_encoder(tmp_path, network, ratio):
  base, _ = network
  hidden = 64 * ratio
  if base.feed_forward == "swiglu":
    hidden = gated_width(hidden)
  module = base.clone(hidden=hidden)
  variables = random_variables(module, jnp.zeros((1, 12, 12, 3)))
  folder = str(tmp_path / "encoder")
  ldm_jax.save_pretrained(module, variables, folder)
  found, read = open_dinov2(folder)
  assert found == module
  jax.tree.map(np.testing.assert_array_equal, read, dict(variables))


@pytest.mark.parametrize(
  "fields, said",
  [
    ({"position_offset": 0.1}, r"position_offset=0\.1 .* with .*=0\.0"),
    ({"is_antialiased": True}, "is_antialiased=True"),
    ({"hidden": 96}, "hidden=96 .* with hidden=128"),
    ({"feed_forward": "swiglu", "hidden": 80}, "hidden=80 .* with hidden=88"),
  ],
)
def test_what_transformers_cannot_compute_is_not_saved(tmp_path, fields, said):
  module = SMALL.clone(**{"hidden": 256} | fields)
  shapes_only = jax.eval_shape(
    module.init, jax.random.key(0), jnp.zeros((1, 12, 12, 3))
  )
  with pytest.raises(ConfigError, match=said):
    ldm_jax.save_pretrained(module, shapes_only, str(tmp_path / "encoder"))


def test_single_files_are_not_written(tmp_path):
  module = SMALL.clone(hidden=256)
  variables = random_variables(module, jnp.zeros((1, 12, 12, 3)))
  with pytest.raises(ConfigError, match="save_pretrained"):
    ldm_jax.save_single_file(module, variables, str(tmp_path / "a.safetensors"))


@pytest.mark.parametrize(
  "module, millions",
  [(DinoV2(width=384, depth=12, heads=6), 22), (DinoV2(), 304)],
)
def test_published_sizes_have_their_parameters(module, millions):
  """Oquab et al. 2023: 21 million in ViT-S and 300 million in ViT-L."""
  side = module.size // module.patch
  width, depth = module.width, module.depth
  block = 12 * width**2 + 15 * width
  count = depth * block + (side**2 + 2 + 3 * module.patch**2 + 1 + 2) * width
  variables = jax.eval_shape(
    module.init, jax.random.key(0), jnp.zeros((1, 518, 518, 3))
  )
  assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == count
  assert round(count / 1e6) == millions


def test_configs_are_read_strictly():
  assert build(CONFIG) == DinoV2(12, 4, 16, 2, 4, hidden=48)
  with_registers = CONFIG | {"architectures": ["Dinov2WithRegistersModel"]}
  assert build(with_registers | {"use_swiglu_ffn": True}) == DinoV2(
    *(12, 4, 16, 2, 4),
    hidden=32,
    feed_forward="swiglu",
    registers=4,
    is_antialiased=True,
  )
  for key, value in (("hidden_act", "relu"), ("qkv_bias", False)):
    with pytest.raises(ConfigError, match=key):
      build(CONFIG | {key: value})
  with pytest.raises(ConfigError, match="width 16 must divide into 3"):
    build(CONFIG | {"num_attention_heads": 3})


def test_what_is_no_encoder_is_refused(tmp_path):
  with pytest.raises(ConfigError, match="dinov2_vitl14_pretrain"):
    open_dinov2(str(tmp_path / "nothing.pth"))
  path = str(tmp_path / "other.safetensors")
  write_safetensors(path, {"x": np.zeros(1, np.float32)})
  with pytest.raises(WeightsError, match="is no file of DINOv2"):
    open_dinov2(path)
  clip = {"architectures": ["CLIPTextModel"]}
  (tmp_path / "config.json").write_text(json.dumps(clip))
  write_safetensors(
    str(tmp_path / "model.safetensors"), {"x": np.zeros(1, np.float32)}
  )
  with pytest.raises(ConfigError, match="ClipText; expected a folder"):
    open_dinov2(str(tmp_path))
