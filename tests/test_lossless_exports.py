"""What exported files say is read back as it was."""

import dataclasses
import json
import shutil
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from single_files import write_family
from untrained import FOLDER, untrained

import ldm_jax
from ldm_jax.diffusion.schedule import Schedule
from ldm_jax.errors import ConfigError, WeightsError
from ldm_jax.nn.conditioners.clip_embedder import ClipEmbedder
from ldm_jax.pretrained import save_pretrained as saving
from ldm_jax.pretrained.components import open_file
from ldm_jax.pretrained.convert import ConvertRequest, convert
from ldm_jax.pretrained.networks import load_lazily
from ldm_jax.pretrained.open_model import LoadOptions, open_model
from ldm_jax.pretrained.single_file.stored_configs import KEY
from ldm_jax.weights.safetensors_files import (
  metadata,
  read_safetensors,
  write_safetensors,
)


@pytest.fixture(scope="module")
def families(tmp_path_factory):
  """Models of a family, read from a file of random tensors."""
  folder, read = tmp_path_factory.mktemp("families"), {}

  def load(name):
    if name not in read:
      path = write_family(folder / f"{name}.safetensors", name)
      config = {"vae": {"scaling_factor": 0.7}} if "churches" in name else None
      read[name] = ldm_jax.from_single_file(path, config=config)
    return read[name]

  return load


def written(model, params, tmp_path):
  path = str(tmp_path / "x.safetensors")
  saving.save_single_file(model, params, path)
  return path


@pytest.mark.parametrize(
  "name",
  [
    "sdxl",
    pytest.param("sd1", marks=pytest.mark.slow),
    pytest.param("sdxl-refiner", marks=pytest.mark.slow),
  ],
)
def test_a_usual_model_needs_no_metadata(families, tmp_path, name):
  model, params = families(name)
  path = written(model, params, tmp_path)
  assert metadata(path) == {"format": "pt"}
  assert ldm_jax.from_single_file(path)[0] == model


def with_null(model, null):
  parts = tuple(
    c.clone(null=null) if isinstance(c, ClipEmbedder) else c
    for c in model.conditioners
  )
  return dataclasses.replace(model, conditioners=parts)


CHANGES = {
  "x0": lambda m: dataclasses.replace(m, prediction="x0"),
  "linear": lambda m: dataclasses.replace(
    m, schedule=Schedule("linear", 0.0001, 0.02)
  ),
  "steps": lambda m: dataclasses.replace(m, schedule=Schedule(steps=500)),
  "v and zero SNR": lambda m: dataclasses.replace(
    m, prediction="v", schedule=Schedule(zero_terminal_snr=True)
  ),
  "empty": lambda m: with_null(m, "empty"),
  "heads": lambda m: dataclasses.replace(
    m,
    unet=m.unet.clone(
      attention=dataclasses.replace(m.unet.attention, head_width=32)
    ),
  ),
  "groups": lambda m: dataclasses.replace(m, unet=m.unet.clone(groups=16)),
}


def test_all_that_tensors_do_not_show_comes_back(families, tmp_path):
  model, params = families("sdxl")
  for change in ("x0", "linear", "empty", "heads"):
    model = CHANGES[change](model)
  path = written(model, params, tmp_path)
  found, again = ldm_jax.from_single_file(path)
  assert found == model
  jax.tree.map(np.testing.assert_array_equal, again, params)


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
def test_what_tensors_do_not_show_comes_back(families, tmp_path, change):
  model, params = families("sdxl")
  changed = CHANGES[change](model)
  path = written(changed, params, tmp_path)
  found, again = ldm_jax.from_single_file(path)
  assert found == changed
  jax.tree.map(np.testing.assert_array_equal, again, params)
  assert open_model(path).warnings == ()


def test_the_scale_of_latents_comes_back(families, tmp_path):
  model, params = families("sd1")
  params = params.replace(latent_scale=jnp.float32(0.3))
  path = written(model, params, tmp_path)
  _, again = ldm_jax.from_single_file(path)
  assert again.latent_scale == np.float32(0.3)


def test_a_class_models_file_is_readable(families, tmp_path):
  """Also one of another number of heads than LDM's."""
  model, params = families("ldm-classes-f4")
  model = dataclasses.replace(
    model,
    unet=model.unet.clone(
      attention=dataclasses.replace(model.unet.attention, heads=4)
    ),
  )
  found, again = ldm_jax.from_single_file(written(model, params, tmp_path))
  assert found == model
  jax.tree.map(np.testing.assert_array_equal, again, params)


def test_what_no_format_says_is_refused_by_name(families, tmp_path):
  model, params = families("sd1")
  skipping = dataclasses.replace(
    model, conditioners=(model.conditioners[0].clone(skips=(1,)),)
  )
  for changed, name in (
    (skipping, "skips"),
    (with_null(model, "zeros"), "null='zeros'"),
    (
      dataclasses.replace(model, schedule=Schedule("sqrt")),
      "schedule of kind 'sqrt'",
    ),
  ):
    with pytest.raises(ConfigError, match=name):
      written(changed, params, tmp_path)


def test_an_autoencoder_alone_carries_its_scale_and_size(families, tmp_path):
  model, params = families("sd1")
  vae, own = model.first_stage, params.first_stage
  options = {"image_size": 96, "latent_scale": 0.42}
  saving.save_pretrained(vae, own, str(tmp_path / "folder"), **options)
  config = (tmp_path / "folder" / "config.json").read_text()
  assert '"scaling_factor": 0.42' in config and '"sample_size": 96' in config
  path = str(tmp_path / "vae.safetensors")
  saving.save_single_file(vae, own, path, **options)
  whole = write_family(tmp_path / "a.safetensors", "sdxl")
  loaded = open_model(whole, LoadOptions(vae=path))
  assert loaded.params.latent_scale == np.float32(0.42)


@pytest.mark.parametrize(
  "text",
  ["5", "null", "[]", "{", "{}", '{"networks": {"unet": 1}}',
   '{"networks": {}, "scheduler": null, "index": {}}',
   '{"networks": {"unet": {"kind": "x", "prefix": "", "config": {}}},'
   ' "scheduler": null, "index": {}}'],
)  # fmt: skip
def test_damaged_metadata_is_one_line(families, tmp_path, text):
  path = write_family(tmp_path / "a.safetensors", "sd1")
  write_safetensors(
    tmp_path / "b.safetensors", read_safetensors(path), metadata={KEY: text}
  )
  with pytest.raises((WeightsError, ConfigError)):
    open_model(str(tmp_path / "b.safetensors"))


@pytest.fixture(scope="module")
def first_stage(tmp_path_factory):
  """The run of an untrained autoencoder on 16 x 16 images, and their folder."""
  folder = tmp_path_factory.mktemp("first_stage")
  rng = np.random.default_rng(0)
  for i in range(10):
    pixels = rng.integers(0, 255, (16, 16, 3), np.uint8)
    (folder / "images" / "a").mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(folder / "images" / "a" / f"{i}.png")
  images = str(folder / "images")
  config = folder / "config.py"
  config.write_text(FOLDER.format(source=images, good=images))
  untrained(config, folder / "run", [])
  return folder


def test_the_run_of_an_autoencoder_converts_with_its_scale_and_size(
  first_stage,
):
  run, target = str(first_stage / "run"), first_stage / "vae"
  convert(ConvertRequest(run, str(target)))
  config = json.loads((target / "config.json").read_text())
  vae, params = ldm_jax.from_pretrained(str(target))
  pixels = [
    np.asarray(Image.open(file), np.float32) / 127.5 - 1
    for file in sorted((first_stage / "images" / "a").iterdir())
  ]
  posterior = vae.apply(params, jnp.asarray(pixels), method="encode")
  noise = jax.random.normal(jax.random.key(5), posterior.mode().shape)
  std = float(posterior.sample(noise).std())
  assert config["sample_size"] == 16
  assert config["scaling_factor"] == pytest.approx(1 / std, rel=0.05)
  shutil.move(first_stage / "images", first_stage / "moved")
  again = ConvertRequest(run, str(first_stage / "again"))
  with pytest.raises(ConfigError, match="--latent_scale"):
    convert(again)
  convert(dataclasses.replace(again, latent_scale=0.5))
  config = json.loads((first_stage / "again" / "config.json").read_text())
  assert config["scaling_factor"] == 0.5


def test_a_network_is_converted_one_tensor_at_a_time(tmp_path):
  """Its parameters are never in memory together, nor in float32."""
  path = write_family(tmp_path / "a.safetensors", "sdxl")
  network = open_file(path).networks["unet"]
  module, params = load_lazily(network)
  exported = saving.export_network(module, params)
  tensors = exported.tensors("compvis", np.dtype(np.float16))
  sizes = sorted(tensor.nbytes for tensor in tensors.values())
  target = tmp_path / "b.safetensors"
  tracemalloc.start()
  write_safetensors(target, tensors)
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert peak < 3 * sizes[-1] + 2**20 < sum(sizes) / 2
  found = read_safetensors(target)
  expected = {n: network.tensors[n].astype(np.float16) for n in network.tensors}
  jax.tree.map(np.testing.assert_array_equal, found, expected)
