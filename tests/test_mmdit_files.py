"""SD 3 and SD 3.5 in diffusers' folders and in single files, in and out."""

import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from networks import random_like, random_variables

import ldm_jax
from ldm_jax.diffusion.schedule import Schedule
from ldm_jax.errors import ConfigError, WeightsError
from ldm_jax.latent_diffusion import LatentDiffusion, Parameters
from ldm_jax.latents import check_image_size
from ldm_jax.nn.autoencoder import Autoencoder, ConvStack
from ldm_jax.nn.conditioners.embedders import ClassEmbedder, Condition
from ldm_jax.nn.encoders.clip_text import ClipText
from ldm_jax.nn.encoders.t5 import T5Encoder
from ldm_jax.nn.latent_normalization import LatentNormalization
from ldm_jax.nn.mmdit.mmdit import MMDiT
from ldm_jax.pretrained.convert import ConvertRequest, convert
from ldm_jax.pretrained.inspect import inspect
from ldm_jax.pretrained.mmdit.detect_file import TEXTS
from ldm_jax.pretrained.mmdit.mmdit_config import SD3, mmdit
from ldm_jax.pretrained.networks import class_of
from ldm_jax.pretrained.open_model import LoadOptions, open_model
from ldm_jax.pretrained.single_file.detect import detect
from ldm_jax.pretrained.text.families import TextEncoders, sd3_conditioners
from ldm_jax.weights.files import read_metadata
from ldm_jax.weights.safetensors_files import (
  read_safetensors,
  write_safetensors,
)

CLIPS = (
  ClipText(300, 64, 2, 1, projection=12),
  ClipText(300, 64, 2, 1, activation="gelu", projection=20),
)
T5 = T5Encoder(96, 160, 1, 2, 8, 24)
ENCODERS = TextEncoders(CLIPS, (49407, 0), T5)
STAGE = Autoencoder(
  ConvStack(32, (1, 1), 1),
  16,
  has_quant_conv=False,
  has_post_quant_conv=False,
  normalization=LatentNormalization((0.0609,)),
)
# As Stability's files have them: heads of 64 features, latents of 128.
NETWORK = MMDiT(16, 64, 3, 1, max_size=6)
FAMILIES = {
  "sd3": NETWORK,
  "sd3.5-medium": NETWORK.clone(heads=2, dual_blocks=(0, 1), is_qk_normed=True),
  "sd3.5-large": NETWORK.clone(heads=2, is_qk_normed=True),
}


@functools.cache
def model(family="sd3.5-medium", has_t5=True):
  encoders = ENCODERS if has_t5 else ENCODERS._replace(t5=None)
  return LatentDiffusion(
    STAGE,
    FAMILIES[family],
    tuple(sd3_conditioners(encoders, 160, 32)),
    Schedule("rectified_flow"),
    "flow",
  )


@functools.cache
def params(family="sd3.5-medium", has_t5=True):
  raw = {
    "tokens": jnp.zeros((1, 2, 77), int),
    "t5_tokens": jnp.zeros((1, 256), int),
  }
  init = lambda: model(family, has_t5).init(
    jax.random.key(0), raw, (1, 8, 8, 16)
  )
  trained = random_like(jax.eval_shape(init))
  image, latents = jnp.zeros((1, 16, 16, 3)), jnp.zeros((1, 8, 8, 16))
  return Parameters(
    random_variables(STAGE, image, latents, seed=1),
    jnp.float32(1.5305),
    trained["conditioners"],
    trained["unet"],
  )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  path = str(tmp_path_factory.mktemp("mmdit") / "folder")
  ldm_jax.save_pretrained(model(), params(), path, image_size=256)
  return path


@pytest.fixture(scope="module")
def file(tmp_path_factory):
  path = str(tmp_path_factory.mktemp("mmdit") / "sd3.safetensors")
  ldm_jax.save_single_file(model(), params(), path)
  return path


def assert_equal(ours, theirs):
  assert jax.tree.structure(ours) == jax.tree.structure(theirs)
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_a_folder_comes_back_bit_for_bit(folder, tmp_path):
  loaded = open_model(folder)
  assert loaded.model == model() and loaded.guidance == 7.0
  assert (loaded.height, loaded.width) == (256, 256) and not loaded.warnings
  assert loaded.sampler_config.shift == 3.0
  assert_equal(loaded.params, params())
  again = str(tmp_path / "again")
  convert(ConvertRequest(folder, again))
  for path in pathlib.Path(folder).rglob("*.*"):
    other = again / path.relative_to(folder)
    if path.suffix == ".json":
      assert json.loads(path.read_text()) == json.loads(other.read_text())
    else:
      assert path.read_bytes() == other.read_bytes()


def test_a_missing_t5_is_zeros_in_folders_and_files(tmp_path):
  folder, file = str(tmp_path / "folder"), str(tmp_path / "a.safetensors")
  own, variables = model("sd3", False), params("sd3", False)
  ldm_jax.save_pretrained(own, variables, folder, image_size=256)
  index = json.loads(pathlib.Path(folder, "model_index.json").read_text())
  assert index["text_encoder_3"] == index["tokenizer_3"] == [None, None]
  ldm_jax.save_single_file(own, variables, file)
  for path in (folder, file):
    loaded = open_model(path)
    assert loaded.model == own
    assert_equal(loaded.params, variables)


@pytest.mark.parametrize("family", FAMILIES)
def test_files_of_stabilitys_layout_are_detected(family, tmp_path):
  """By names and shapes alone: they have no metadata of this package."""
  path = str(tmp_path / "model.safetensors")
  has_t5 = family != "sd3"
  ldm_jax.save_single_file(model(family, has_t5), params(family, has_t5), path)
  assert "ldm_jax.components" not in read_metadata(path)
  assert inspect(path)["family"] == family
  loaded = open_model(path)
  assert loaded.model == model(family, has_t5)
  assert loaded.sampler_config.shift == 3.0
  assert_equal(loaded.params, params(family, has_t5))


def test_a_file_is_written_again_bit_for_bit(file, tmp_path):
  again = str(tmp_path / "again.safetensors")
  convert(ConvertRequest(file, again, single_file=True))
  first, second = read_safetensors(file), read_safetensors(again)
  assert_equal(dict(first), dict(second))


def write_part(file, path, prefix):
  """The tensors of one network, without their prefix."""
  tensors = read_safetensors(file)
  found = {
    name.removeprefix(prefix): np.array(tensors[name])
    for name in tensors
    if name.startswith(prefix)
  }
  write_safetensors(path, found)


def test_the_transformer_alone_needs_the_other_networks(file, folder, tmp_path):
  path = str(tmp_path / "transformer.safetensors")
  write_part(file, path, "model.diffusion_model.")
  with pytest.raises(ConfigError, match="vae=PATH"):
    open_model(path)
  texts = [f"{folder}/{name}" for name in ("text_encoder", "text_encoder_2")]
  lone = str(tmp_path / "vae.safetensors")
  write_part(file, lone, "first_stage_model.")
  for vae in (f"{folder}/vae", lone):
    loaded = open_model(path, LoadOptions(vae=vae, text_encoder=texts))
    assert loaded.model == model(has_t5=False)
    assert loaded.params.latent_scale == np.float32(1.5305)
    assert_equal(loaded.params.unet, params().unet)
    assert_equal(loaded.params.first_stage, params().first_stage)
    (line,) = loaded.warnings
    assert "no text_encoder_3 (T5), for which zeros stand; give" in line
  options = LoadOptions(vae=lone, text_encoder=[f"{folder}/text_encoder_3"])
  (line,) = open_model(path, options).warnings
  assert "no text_encoder (CLIP), text_encoder_2 (OpenCLIP), for" in line


def test_numbers_that_tensors_do_not_show_are_in_the_metadata(tmp_path):
  """Other heads, and another scale of the latents."""
  path = str(tmp_path / "other.safetensors")
  own = dataclasses.replace(model("sd3", False), unet=NETWORK.clone(heads=4))
  variables = params("sd3", False).replace(latent_scale=jnp.float32(0.5))
  ldm_jax.save_single_file(own, variables, path)
  assert "ldm_jax.components" in read_metadata(path)
  loaded = open_model(path)
  assert loaded.model == own
  assert loaded.params.latent_scale == np.float32(0.5)


def with_tensor(file, path, name, change):
  """Writes the file without metadata and with one other tensor."""
  tensors = {n: np.array(x) for n, x in read_safetensors(file).items()}
  tensors[name] = change(tensors[name]) if name in tensors else change(None)
  write_safetensors(path, tensors)
  return path


@pytest.mark.parametrize(
  "name, change, message",
  [
    ("model.diffusion_model.pos_embed", lambda x: x + np.arange(36)[:, None]
     * np.arange(64), "learned positions"),
    ("model.diffusion_model.x_embedder.proj.weight", lambda x: x[:, :, 0, 0],
     "not those of an MMDiT"),
    ("another.weight", lambda _: np.zeros((2, 2), np.float32),
     "another.weight"),
  ],
)  # fmt: skip
def test_other_tensors_are_refused(file, tmp_path, name, change, message):
  path = str(tmp_path / "other.safetensors")
  with_tensor(file, path, name, change)
  with pytest.raises(WeightsError, match=message):
    open_model(path)


def test_another_prediction_is_refused(file):
  with pytest.raises(WeightsError, match="predicts 'flow'"):
    open_model(file, LoadOptions(prediction="v"))


def test_what_the_formats_cannot_hold_is_refused(tmp_path):
  target = str(tmp_path / "target")
  first, *rest = model().conditioners
  for conditioners in (
    (ClassEmbedder(3, 160),),
    (first.clone(skips=(0, 0)), *rest),
    (first, *rest, ClassEmbedder(3, 160)),
  ):
    other = dataclasses.replace(model(), conditioners=conditioners)
    with pytest.raises(ConfigError, match="in one way"):
      ldm_jax.save_single_file(other, params(), f"{target}.safetensors")
  steps = dataclasses.replace(
    model(),
    unet=model().unet.clone(flow_steps=10),
    schedule=Schedule("rectified_flow", steps=10),
  )
  with pytest.raises(ConfigError, match="flow_steps=10"):
    ldm_jax.save_pretrained(steps, params(), target)


@pytest.mark.parametrize(
  "key, value",
  [
    ("qk_norm", "layer_norm"),
    ("caption_projection_dim", 64),
    ("dual_attention_layers", [18]),
    ("dual_attention_layers", ["0"]),
    ("dual_attention_layers", 3),
    ("dual_attention_layers", 0),
    ("sample_size", 7),
    ("num_layers", 0),
    ("num_attention_heads", "2"),
    ("pos_embed_max_size", 10**6),
    ("force_zeros_for_pooled_projection", True),
  ],
)
def test_other_keys_are_refused_by_name(key, value):
  config = {"_class_name": SD3.kind, key: value}
  with pytest.raises(ConfigError, match=key):
    mmdit(config)


def test_images_without_positions_are_refused():
  check_image_size(model(), 24, 8)  # 6 patches of 2 x 2 latents of 2 pixels
  check_image_size(model(), 28, 8, window=24)
  with pytest.raises(ValueError, match="at most 24 pixels"):
    check_image_size(model(), 28, 8)


def test_controlnets_of_transformers_are_refused_by_name():
  with pytest.raises(WeightsError, match="a ControlNet of a transformer"):
    detect({"controlnet_blocks.0.weight": (16, 16)})
  with pytest.raises(ConfigError, match="SD3ControlNetModel"):
    class_of({"_class_name": "SD3ControlNetModel"})


@pytest.mark.slow
def test_matrices_in_8_bits_predict_nearly_the_same(folder):
  exact = open_model(folder)
  small = open_model(folder, LoadOptions(weight_dtype="int8"))
  rng = np.random.default_rng(0)
  array = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
  condition = Condition(context=array(1, 5, 160), vector=array(1, 32))
  inputs = array(1, 8, 8, 16), jnp.array([500.0]), condition
  expected, found = (
    jax.jit(loaded.model.predict)(loaded.params, *inputs)
    for loaded in (exact, small)
  )
  assert 0 < np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


def test_files_of_mixed_formats_are_read(file, tmp_path):
  """The transformer in bfloat16, T5 in 8-bit floats with scales."""
  path, small = str(tmp_path / "mixed.safetensors"), ml_dtypes.float8_e4m3fn
  tensors = {n: np.array(x) for n, x in read_safetensors(file).items()}
  start = TEXTS["text_encoder_3"]
  for name, tensor in list(tensors.items()):
    if name.startswith("model.diffusion_model."):
      tensors[name] = tensor.astype(ml_dtypes.bfloat16)
    elif name.startswith(start) and name.endswith("SelfAttention.q.weight"):
      scale = np.abs(tensor).max() / 448
      tensors[name] = (tensor / scale).astype(small)
      scales = f"{name.removesuffix('weight')}scale_weight"
      tensors[scales] = np.float32(scale)
  tensors[f"{start}scaled_fp8"] = np.zeros(2, small)
  write_safetensors(path, tensors)
  loaded = open_model(path)
  assert loaded.model == model()

  def assert_near(ours, theirs):
    size = np.abs(theirs).max()
    np.testing.assert_allclose(ours, theirs, rtol=2**-4, atol=2**-9 * size)

  jax.tree.map(assert_near, loaded.params, params())
