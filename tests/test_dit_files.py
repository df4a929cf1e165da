"""DiT in diffusers' folders and in its authors' files, in and out."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import random_like, random_variables

import ldm_jax
from ldm_jax.diffusion.schedule import Schedule
from ldm_jax.errors import ConfigError, WeightsError
from ldm_jax.latent_diffusion import LatentDiffusion, Parameters
from ldm_jax.nn.autoencoder import Autoencoder, ConvStack
from ldm_jax.nn.conditioners.embedders import ClassEmbedder, Condition
from ldm_jax.nn.dit.dit import DiT
from ldm_jax.nn.dit.positions import sincos_positions
from ldm_jax.pretrained.convert import ConvertRequest, convert
from ldm_jax.pretrained.dit.dit_config import DIT, dit, dit_config
from ldm_jax.pretrained.open_model import open_model
from ldm_jax.weights.naming.convert import revert, shapes
from ldm_jax.weights.naming.parameter_names import name_table
from ldm_jax.weights.safetensors_files import (
  read_safetensors,
  write_safetensors,
)

CLASSES = 5
NAMES = ("tench", "goldfish, Carassius", "shark", "ray", "cock")
NETWORK = DiT(4, 16, 2, 2, learns_variance=True, grid=4)
MODEL = LatentDiffusion(
  Autoencoder(ConvStack(32, (1, 1), 1), 4),
  NETWORK,
  (ClassEmbedder(CLASSES, 16, joins="vector", deviation=0.02),),
  Schedule("linear", start=1e-4, end=0.02),
)


@pytest.fixture(scope="module")
def params():
  key, label = jax.random.key(0), {"label": jnp.zeros(1, int)}
  trained = random_like(
    jax.eval_shape(lambda: MODEL.init(key, label, (1, 8, 8, 4)))
  )
  image, latents = jnp.zeros((1, 16, 16, 3)), jnp.zeros((1, 8, 8, 4))
  return Parameters(
    random_variables(MODEL.first_stage, image, latents, seed=1),
    jnp.float32(0.18215),
    trained["conditioners"],
    trained["unet"],
  )


@pytest.fixture(scope="module")
def folder(params, tmp_path_factory):
  path = str(tmp_path_factory.mktemp("dit") / "folder")
  ldm_jax.save_pretrained(MODEL, params, path, image_size=16, classes=NAMES)
  return path


def tensors_of(folder):
  weights = "transformer/diffusion_pytorch_model.safetensors"
  return read_safetensors(f"{folder}/{weights}")


def assert_equal(ours, theirs):
  assert jax.tree.structure(ours) == jax.tree.structure(theirs)
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_a_folder_comes_back_bit_for_bit(params, folder, tmp_path):
  loaded = open_model(folder)
  assert loaded.model == MODEL
  assert loaded.classes == NAMES and loaded.guidance == 4.0
  assert (loaded.height, loaded.width) == (16, 16) and not loaded.warnings
  assert_equal(loaded.params, params)
  again = str(tmp_path / "again")
  convert(ConvertRequest(folder, again))
  first, second = tensors_of(folder), tensors_of(again)
  assert_equal(dict(first), dict(second))
  for name in ("transformer/config.json", "model_index.json"):
    first, second = (pathlib.Path(f, name) for f in (folder, again))
    assert json.loads(first.read_text()) == json.loads(second.read_text())


def test_every_block_of_a_folder_has_the_embeddings(folder):
  tensors = tensors_of(folder)
  first = [n for n in tensors if n.startswith("transformer_blocks.0.norm1.emb")]
  assert len(first) == 5  # two matrices with biases, and the table
  for name in first:
    other = name.replace("blocks.0", "blocks.1")
    np.testing.assert_array_equal(tensors[name], tensors[other])


def test_copies_that_differ_are_refused(folder, tmp_path):
  copy = tmp_path / "copy"
  convert(ConvertRequest(folder, str(copy)))
  tensors = {n: np.array(x) for n, x in tensors_of(copy).items()}
  name = "transformer_blocks.1.norm1.emb.class_embedder.embedding_table.weight"
  tensors[name][0, 0] += 1
  path = copy / "transformer/diffusion_pytorch_model.safetensors"
  path.unlink()
  write_safetensors(str(path), tensors)
  with pytest.raises(WeightsError, match="one embedding"):
    open_model(str(copy))


def released(params, side=4):
  """Tensors under the names of facebookresearch's files."""
  found = {}
  label = params.conditioners["label"]["params"]
  for kind, own in (("dit", params.unet["params"]), ("dit_labels", label)):
    found |= revert(name_table(kind, "compvis", shapes(own)), own)
  positions = np.asarray(sincos_positions((side, side), 16, None))[None]
  return found | {"pos_embed": positions}


HEADS = {"unet": {"num_attention_heads": 2}}


def test_released_names_are_read(params, folder, tmp_path):
  path = str(tmp_path / "DiT.safetensors")
  write_safetensors(path, released(params))
  with pytest.raises(WeightsError, match="number of heads"):
    open_model(path)
  model, found = ldm_jax.from_single_file(
    path, config=HEADS, vae=f"{folder}/vae"
  )
  assert model == MODEL
  assert_equal(found.unet, params.unet)
  assert_equal(found.conditioners, params.conditioners)
  with pytest.raises(ConfigError, match="vae=PATH"):
    ldm_jax.from_single_file(path, config=HEADS)


def test_a_sit_is_read_where_the_caller_says_so(params, folder, tmp_path):
  """Its network sees SiT's own time; everything else is a DiT's."""
  path = str(tmp_path / "SiT.safetensors")
  write_safetensors(path, released(params))
  model, found = ldm_jax.from_single_file(
    path, config=HEADS, prediction="flow", vae=f"{folder}/vae"
  )
  assert model == dataclasses.replace(
    MODEL,
    unet=NETWORK.clone(flow_steps=1000),
    schedule=Schedule("rectified_flow"),
    prediction="flow",
  )
  assert_equal(found.unet, params.unet)
  with pytest.raises(ConfigError, match="flow_steps"):
    ldm_jax.save_pretrained(model, found, str(tmp_path / "sit"))


@pytest.mark.parametrize("prediction", ["eps", "flow"])
def test_released_names_are_written_bit_for_bit(
  params, folder, tmp_path, caplog, prediction
):
  first, second = (str(tmp_path / f"{i}.safetensors") for i in range(2))
  write_safetensors(first, released(params))
  options = {"config": HEADS, "prediction": prediction}
  options["vae"] = f"{folder}/vae"
  model, found = ldm_jax.from_single_file(first, **options)
  ldm_jax.save_single_file(model, found, second)
  assert "hold no autoencoder" in caplog.text
  ours, theirs = read_safetensors(second), read_safetensors(first)
  assert_equal(dict(ours), dict(theirs))


def test_learned_positions_are_refused(params, folder, tmp_path):
  path = str(tmp_path / "learned.safetensors")
  tensors = released(params)
  write_safetensors(path, tensors | {"pos_embed": tensors["pos_embed"] + 1})
  with pytest.raises(WeightsError, match="learned positions"):
    ldm_jax.from_single_file(path, config=HEADS, vae=f"{folder}/vae")


@pytest.mark.parametrize(
  "name, shape",
  [
    ("x_embedder.proj.weight", (16, 4)),
    ("x_embedder.proj.weight", (16, 0, 2, 2)),
    ("pos_embed", ()),
    ("final_layer.linear.weight", (7, 16)),
    ("y_embedder.embedding_table.weight", (16,)),
  ],
)
def test_files_of_other_shapes_are_refused(params, tmp_path, name, shape):
  path = str(tmp_path / "other.safetensors")
  tensors = released(params) | {name: np.zeros(shape, np.float32)}
  write_safetensors(path, tensors)
  with pytest.raises(WeightsError, match="not those of a DiT"):
    open_model(path)


@pytest.mark.parametrize("heads", [3, 0, -2, "2"])
def test_heads_that_do_not_divide_the_width_are_refused(
  params, tmp_path, heads
):
  path = str(tmp_path / "DiT.safetensors")
  write_safetensors(path, released(params))
  config = {"unet": {"num_attention_heads": heads}}
  with pytest.raises(WeightsError, match="number of heads"):
    ldm_jax.from_single_file(path, config=config)


def test_what_the_formats_cannot_hold_is_refused(params, folder, tmp_path):
  target = str(tmp_path / "target")
  file = f"{target}.safetensors"
  shifted = dataclasses.replace(MODEL, unet=NETWORK.clone(frequency_shift=1))
  with pytest.raises(ConfigError, match="frequency_shift=1"):
    ldm_jax.save_single_file(shifted, params, file)
  with pytest.raises(ConfigError, match="mlp_epsilon"):
    ldm_jax.save_single_file(
      dataclasses.replace(MODEL, unet=NETWORK.clone(mlp_epsilon=1e-5)),
      params,
      file,
    )
  with pytest.raises(ConfigError, match="only Schedule"):
    ldm_jax.save_single_file(
      dataclasses.replace(MODEL, schedule=Schedule()), params, file
    )
  with pytest.raises(ConfigError, match="whole LatentDiffusion"):
    ldm_jax.save_pretrained(NETWORK, params.unet, target)
  with pytest.raises(ConfigError, match="3 names for 5 classes"):
    ldm_jax.save_pretrained(MODEL, params, target, classes=NAMES[:3])
  modern = dataclasses.replace(MODEL, unet=NETWORK.clone(is_qk_normed=True))
  with pytest.raises(ConfigError, match="no is_qk_normed=True"):
    ldm_jax.save_pretrained(modern, params, target)
  context = dataclasses.replace(
    MODEL, conditioners=(ClassEmbedder(CLASSES, 16),)
  )
  with pytest.raises(ConfigError, match="joins='vector'"):
    ldm_jax.save_pretrained(context, params, target)
  with pytest.raises(ConfigError, match="no autoencoder"):
    ldm_jax.from_pretrained(folder, subfolder="transformer")


@pytest.mark.parametrize(
  "key, value",
  [
    ("norm_type", "ada_norm_single"),
    ("activation_fn", "geglu"),
    ("out_channels", 5),
    ("sample_size", 7),
    ("num_layers", 0),
    ("num_attention_heads", "2"),
    ("norm_eps", 0.0),
    ("_frequency_shift", 128),
    ("_flow_steps", -1),
  ],
)
def test_other_keys_are_refused_by_name(key, value):
  config = {"_class_name": DIT.kind, key: value}
  with pytest.raises(ConfigError, match=key):
    dit(config)


def test_the_first_published_config_is_read():
  """facebook/DiT-XL-2-256 names the class Transformer2DModel."""
  config = {
    "_class_name": "Transformer2DModel",
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "attention_head_dim": 72,
    "cross_attention_dim": None,
    "num_vector_embeds": None,
    "only_cross_attention": False,
    "out_channels": 8,
    "norm_type": "ada_norm_zero",
  }
  module = dit(config)
  assert (module.width, module.depth, module.heads) == (1152, 28, 16)
  assert module.learns_variance and module.grid == 16
  assert dit(dit_config(module, 1000, 32)) == module


def test_times_of_diffusers_have_other_frequencies(params):
  """By a few hundredths of the output, so both are kept apart."""
  xt = jnp.ones((1, 4, 4, 4))
  condition = Condition(vector=jnp.ones((1, 16)))
  inputs = xt, jnp.array([500.0]), condition
  one, other = (
    np.asarray(jax.jit(network.apply)(params.unet, *inputs))
    for network in (NETWORK, NETWORK.clone(frequency_shift=1))
  )
  assert np.abs(one - other).max() > 1e-4 * np.abs(one).max()
