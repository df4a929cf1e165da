"""NaN and infinity in weights are refused, by file and tensor."""

import pathlib

import numpy as np
import pytest
from safetensors.numpy import load_file
from single_files import (
  OLD,
  TINY_CLIP,
  TINY_VAE,
  vae_file,
  write_family,
)
from test_single_networks import (
  controlled,  # noqa: F401, a fixture
  halves,
  open_offline,
  random_tensors,
  text_folder,
  vae,  # noqa: F401, a fixture
)

import ldm_jax
from ldm_jax.errors import NonFiniteWeights
from ldm_jax.pretrained.controlnet import with_controlnet
from ldm_jax.weights.safetensors_files import write_safetensors


def spoiled(folder, value, tensors):
  """A file whose middle tensor has one such value: (path, tensor's name)."""
  tensors = {name: np.asarray(x).copy() for name, x in tensors.items()}
  name = sorted(tensors)[len(tensors) // 2]
  tensors[name][(0,) * tensors[name].ndim] = value
  path = folder / "spoiled.safetensors"
  write_safetensors(path, tensors)
  return path, name


def spoiled_folder(path, value):
  """A folder's one file of weights, in the same way: (file, name)."""
  (file,) = pathlib.Path(path).glob("*.safetensors")
  made, name = spoiled(file.parent, value, load_file(file))
  made.replace(file)
  return file, name


def assert_named(read, file, name):
  with pytest.raises(NonFiniteWeights) as caught:
    read()
  text = str(caught.value)
  found, _, rest = text.removeprefix(f"{file}: ").partition(" ")
  # The name within the network, without the prefix of a file's part.
  assert text.startswith(f"{file}: ") and name.endswith(found)
  assert "values" in rest and "\n" not in text


VALUES = pytest.mark.parametrize("value", [np.nan, -np.inf])


@VALUES
@pytest.mark.parametrize("scheme", ["compvis", "diffusers"])
def test_of_a_controlnet(controlled, tmp_path, scheme, value):  # noqa: F811
  _, loaded, _, tensors = controlled
  file, name = spoiled(tmp_path, value, tensors[scheme])
  assert_named(lambda: with_controlnet(loaded, str(file)), file, name)


@VALUES
@pytest.mark.parametrize("kind", ["file", "diffusers", "folder", "tiny"])
def test_of_an_autoencoder(tmp_path, vae, kind, value):  # noqa: F811
  path = write_family(tmp_path / "x.safetensors", "sd1")
  if kind == "file":
    file, name = spoiled(
      tmp_path, value, random_tensors(vae_file(TINY_VAE, ""))
    )
  elif kind == "tiny":
    file, name = spoiled(tmp_path, value, halves()[1])
  else:
    made, params = vae
    module, _ = ldm_jax.from_single_file(str(made / "vae.safetensors"))
    ldm_jax.save_pretrained(module, params, str(tmp_path / "vae"))
    file, name = spoiled_folder(tmp_path / "vae", value)
  given = file.parent if kind == "folder" else file
  assert_named(lambda: open_offline(path, vae=str(given)), file, name)


@VALUES
def test_of_a_text_encoder(tmp_path, value):
  start = f"{OLD}transformer.text_model."
  folder, _ = text_folder(tmp_path / "text", TINY_CLIP, "clip", start)
  path = write_family(tmp_path / "a.safetensors", "sd1")
  file, name = spoiled_folder(folder, value)
  assert_named(
    lambda: open_offline(path, text_encoder=[folder]).params, file, name
  )


@VALUES
@pytest.mark.parametrize("part", ["diffusion_model", "first_stage", "cond"])
def test_of_a_single_file(tmp_path, part, value):
  path = write_family(tmp_path / "x.safetensors", "sd1")
  tensors = dict(load_file(path))
  name = next(
    n for n, x in sorted(tensors.items()) if part in n and x.dtype.kind == "f"
  )
  tensors[name] = np.array(tensors[name])
  tensors[name].flat[0] = value
  file = tmp_path / "spoiled.safetensors"
  write_safetensors(file, tensors)
  assert_named(lambda: open_offline(str(file)), file, name)
