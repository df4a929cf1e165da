"""Autoencoders and text encoders from files of their own."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import f32, random_variables
from single_files import (
  CLIP,
  FIRST,
  OLD,
  SECOND,
  TINY_CLIP,
  TINY_VAE,
  VAE,
  text_file,
  vae_file,
  write_family,
)

import ldm_jax
from ldm_jax.errors import ConfigError, WeightsError
from ldm_jax.latent_diffusion import LatentDiffusion, Parameters
from ldm_jax.loaded_model import LoadedModel
from ldm_jax.nn.conditioners.embedders import Condition
from ldm_jax.nn.controlnet import ControlNet
from ldm_jax.nn.latent_normalization import LatentNormalization
from ldm_jax.nn.tiny_autoencoder import TinyAutoencoder
from ldm_jax.nn.unet import AttentionPlan, UNet
from ldm_jax.pretrained import save_pretrained as saving
from ldm_jax.pretrained.configs.tiny_autoencoder_config import (
  tiny_autoencoder,
  tiny_autoencoder_config,
)
from ldm_jax.pretrained.controlnet import with_controlnet
from ldm_jax.pretrained.from_pretrained import find_components
from ldm_jax.pretrained.open_model import LoadOptions, open_model
from ldm_jax.pretrained.single_network.replace_vae import with_vae
from ldm_jax.weights.naming.convert import shapes as shapes_of
from ldm_jax.weights.naming.parameter_names import Geometry, name_table
from ldm_jax.weights.safetensors_files import write_safetensors

TINY = TinyAutoencoder(8, 4, (1, 2), (2, 1))


def random_tensors(shapes, seed=1):
  rng = np.random.default_rng(seed)
  return {
    name: np.float32(0.1 * rng.standard_normal(shape))
    for name, shape in shapes.items()
  }


def open_offline(path, **options):
  return open_model(path, LoadOptions(**options))


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
  """An autoencoder of other values: (file, folder)."""
  made = tmp_path_factory.mktemp("vae")
  tensors = random_tensors(vae_file(TINY_VAE, ""))
  write_safetensors(made / "vae.safetensors", tensors)
  module, params = ldm_jax.from_single_file(str(made / "vae.safetensors"))
  saving.save_pretrained(module, params, str(made / "folder"))
  path = made / "folder" / "config.json"
  config = json.loads(path.read_text()) | {"scaling_factor": 0.5}
  path.write_text(json.dumps(config))
  return made, params


def same(found, expected):
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_file_of_an_autoencoder_replaces_the_models_and_keeps_its_scale(
  tmp_path, vae
):
  made, params = vae
  path = write_family(tmp_path / "x.safetensors", "sdxl")
  loaded = open_offline(path, vae=str(made / "vae.safetensors"))
  same(loaded.params.first_stage, params)
  assert loaded.params.latent_scale == np.float32(0.13025)
  diffusers = made / "folder" / "diffusion_pytorch_model.safetensors"
  loaded = open_offline(path, vae=str(diffusers))
  same(loaded.params.first_stage, params)
  assert loaded.params.latent_scale == np.float32(0.13025)


def test_a_folder_of_an_autoencoder_has_its_own_scale(tmp_path, vae):
  made, params = vae
  path = write_family(tmp_path / "x.safetensors", "sd1", without=[VAE])
  with pytest.raises(ConfigError, match=r"no autoencoder.*--vae"):
    open_offline(path)
  loaded = open_offline(path, vae=str(made / "folder"))
  same(loaded.params.first_stage, params)
  assert loaded.params.latent_scale == np.float32(0.5)
  assert not [line for line in loaded.warnings if "autoencoder" in line]
  with pytest.raises(ConfigError, match="no autoencoder; it has"):
    open_offline(path, vae=path)


def halves():
  """TAESD's encoder and decoder, each under its own names."""
  variables = random_variables(TINY, f32(1, 4, 4, 3), f32(1, 2, 2, 4))
  network = saving.export_network(TINY, variables)
  tensors = network.tensors("diffusers", np.dtype("float32"))
  sides = {"encoder": {}, "decoder": {}}
  for name, tensor in tensors.items():
    side, _, layer, rest = name.split(".", 3)
    number = int(layer) + (side == "decoder")
    sides[side][f"{number}.{rest}"] = tensor
  return variables, tensors, sides


def test_taesd_in_one_file_or_in_two(tmp_path):
  variables, tensors, sides = halves()
  write_safetensors(tmp_path / "diffusers.safetensors", tensors)
  both = {
    f"taesd_{side}.{name}": tensor
    for side, part in sides.items()
    for name, tensor in part.items()
  }
  write_safetensors(tmp_path / "both.safetensors", both)
  for side, part in sides.items():
    write_safetensors(tmp_path / f"taesd_{side}.safetensors", part)
  for name in ("diffusers", "both", "taesd_encoder", "taesd_decoder"):
    path = str(tmp_path / f"{name}.safetensors")
    module, params = ldm_jax.from_single_file(path)
    assert module == TINY
    same(params, variables)
  (tmp_path / "taesd_encoder.safetensors").unlink()
  with pytest.raises(WeightsError, match="its encoder is needed next to it"):
    ldm_jax.from_single_file(str(tmp_path / "taesd_decoder.safetensors"))


def test_taesd_has_scale_1_and_its_config_comes_back(tmp_path):
  assert tiny_autoencoder(tiny_autoencoder_config(TINY)) == (TINY, 1.0)
  standard = {"_class_name": "AutoencoderTiny", "latent_magnitude": 3}
  assert tiny_autoencoder(standard) == (TinyAutoencoder(), 1.0)
  with pytest.raises(ConfigError, match="act_fn"):
    tiny_autoencoder(standard | {"act_fn": "gelu"})
  variables, _, _ = halves()
  folder = str(tmp_path / "tiny")
  ldm_jax.save_pretrained(TINY, variables, folder)
  path = write_family(tmp_path / "x.safetensors", "sdxl")
  loaded = open_offline(path, vae=folder)
  assert loaded.model.first_stage == TINY
  assert loaded.params.latent_scale == 1


@pytest.mark.parametrize("mean", [None, 0.5])
def test_a_run_keeps_its_statistics_of_latents(vae, mean):
  """A file of an autoencoder alone says neither scale nor shift."""
  made, _ = vae
  file, folder = str(made / "vae.safetensors"), str(made / "folder")
  own, _ = ldm_jax.from_pretrained(folder)
  shift = mean and LatentNormalization((mean,))
  own = own.clone(normalization=shift)
  unet = UNet(own.latent_channels, 8, (1,), 1, AttentionPlan((1,)), groups=2)
  params = Parameters({}, jnp.float32(2.0), {}, {})
  run = LoadedModel(LatentDiffusion(own, unet, ()), params, None, 8, 8)
  found = with_vae(run, find_components(file), file)
  assert found.model.first_stage.normalization == shift
  assert found.params.latent_scale == 2
  assert found.params.first_stage
  # The folder's config.json says both.
  found = with_vae(run, find_components(folder), folder)
  assert found.model.first_stage.normalization is None
  assert found.params.latent_scale != 2


def text_folder(path, module, kind, prefix):
  """The folder of a text encoder of random values."""
  source = random_tensors(text_file(prefix, kind, module))
  name = "sdxl" if module.projection else "sd1"
  file = write_family(path.with_suffix(".safetensors"), name, more=source)
  part = open_offline(file).model.conditioners[0]
  index = 1 if module.projection else 0
  loaded = open_offline(file)
  params = loaded.params.conditioners["tokens"]["params"][f"encoders_{index}"]
  saving.save_pretrained(part.encoders[index], {"params": params}, str(path))
  return str(path), params


def test_text_encoders_that_a_file_lacks_come_from_folders(tmp_path):
  first, params = text_folder(
    tmp_path / "text", TINY_CLIP, "clip", f"{OLD}transformer.text_model."
  )
  path = write_family(tmp_path / "a.safetensors", "sd1", without=[CLIP])
  with pytest.raises(ConfigError, match=r"no text encoder.*--text_encoder"):
    open_offline(path)
  loaded = open_offline(path, text_encoder=[first])
  found = loaded.params.conditioners["tokens"]["params"]
  same(found, {"encoders_0": params})
  assert loaded.warnings == ()
  for missing in (FIRST, SECOND):
    path = write_family(tmp_path / "b.safetensors", "sdxl", without=[missing])
    with pytest.raises(ConfigError, match=r"give text_encoder.*--text_enc"):
      open_offline(path)
  path = write_family(tmp_path / "c.safetensors", "sdxl", without=[FIRST])
  loaded = open_offline(path, text_encoder=[first])
  found = loaded.params.conditioners["tokens"]["params"]
  same(found["encoders_0"], params)
  with pytest.raises(ConfigError, match="is a second text_encoder"):
    open_offline(path, text_encoder=[first, first])


@pytest.fixture(scope="module")
def controlled(tmp_path_factory):
  """An SD 1, and the tensors of a ControlNet for it by naming scheme."""
  path = write_family(tmp_path_factory.mktemp("sd1") / "x.safetensors", "sd1")
  loaded = open_model(path)
  unet = loaded.model.unet
  fields = {
    field.name: getattr(unet, field.name)
    for field in dataclasses.fields(unet)
    if field.name not in ("parent", "name")
  }
  control = ControlNet(**fields, hint_channels=(8, 16))
  shapes = jax.eval_shape(
    lambda: control.init(
      jax.random.key(0),
      jnp.zeros((1, 4, 4, 4)),
      jnp.zeros((1,)),
      Condition(context=jnp.zeros((1, 1, 64))),
      jnp.zeros((1, 8, 8, 3)),
    )
  )
  geometry = Geometry(unet.attention.heads, unet.attention.head_width)
  tensors = {}
  for scheme in ("compvis", "diffusers"):
    rows = name_table(
      "unet", scheme, shapes_of(shapes["params"]), geometry
    ).rows
    rng = np.random.default_rng(3)
    tensors[scheme] = {
      row.foreign_name: np.float32(rng.standard_normal(row.foreign_shape()))
      for row in rows
    }
  return path, loaded, control, tensors


def test_a_controlnet_of_one_file(controlled, tmp_path):
  _, loaded, control, tensors = controlled
  compvis, diffusers = tensors["compvis"], tensors["diffusers"]
  prefixed = {f"control_model.{n}": compvis[n] for n in compvis}
  whole = prefixed | {"model.diffusion_model.x": np.zeros(3, np.float32)}
  found = []
  for i, each in enumerate((compvis, prefixed, whole, diffusers)):
    file = tmp_path / f"{i}.safetensors"
    write_safetensors(file, each)
    made = with_controlnet(loaded, str(file))
    assert made.model.control == control
    found.append(made.params.control)
  for params in found[1:3]:
    same(params, found[0])
  kernel = found[3]["params"]["hint_1"]["kernel"]
  tensor = diffusers["controlnet_cond_embedding.blocks.1.weight"]
  same(kernel, tensor.transpose(2, 3, 1, 0))


def test_files_that_are_no_controlnet_for_the_model(controlled, tmp_path):
  path, loaded, _, tensors = controlled
  with pytest.raises(ConfigError, match="no ControlNet"):
    with_controlnet(loaded, path)
  other = dict(tensors["compvis"])
  for name in other:
    if "attn2.to_k" in name:
      other[name] = other[name][:, :32]
  file = tmp_path / "x.safetensors"
  write_safetensors(file, other)
  with pytest.raises(WeightsError, match="another U-Net, which reads 32"):
    with_controlnet(loaded, str(file))
  for mark, kind in (
    ("lora_controlnet", "Control-LoRA"),
    ("difference", "add"),
  ):
    write_safetensors(file, tensors["compvis"] | {mark: np.zeros(1)})
    with pytest.raises(ConfigError, match=kind):
      with_controlnet(loaded, str(file))
