"""8-bit floats are upcast, with their scales; other formats are refused."""

import jax
import ml_dtypes
import numpy as np
import pytest
from single_files import UNET, write_family

import ldm_jax
from ldm_jax.errors import WeightsError
from ldm_jax.weights.safetensors_files import (
  read_safetensors,
  write_safetensors,
)
from ldm_jax.weights.scaled_tensors import scaled

FORMATS = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")


@pytest.mark.parametrize("name", FORMATS)
def test_scales_are_multiplied_in(name):
  dtype = np.dtype(getattr(ml_dtypes, name))
  weight = np.arange(-4, 4, dtype=np.float32).reshape(2, 4).astype(dtype)
  file = {
    "a.weight": weight,
    "a.scale_weight": np.full((), 0.5, np.float32),
    "a.scale_input": np.full((), 3, np.float32),
    "b.weight": weight,
    "b.weight_scale": np.float32([[2], [3]]),
    "c.weight": weight,
    "scaled_fp8": np.zeros(2, dtype),
  }
  found = scaled(file)
  values = weight.astype(np.float32)
  assert list(found) == ["a.weight", "b.weight", "c.weight"]
  assert len(found) == 3
  np.testing.assert_array_equal(found["a.weight"], values / 2)
  np.testing.assert_array_equal(found["b.weight"], values * [[2], [3]])
  assert found["c.weight"].dtype == dtype


def test_tensors_without_scales_are_as_they_are():
  file = {"a.weight": np.ones(3)}
  assert scaled(file) is file


@pytest.mark.parametrize(
  "last", ["absmax", "SCB", "qweight", "weight_scale_inv"]
)
def test_other_quantisations_are_refused_by_name(last):
  with pytest.raises(WeightsError, match=f"a.{last}.*quantised by"):
    scaled({"a.weight": np.ones(3), f"a.{last}": np.ones(3)})


def test_scales_that_do_not_fit():
  weight = np.ones((2, 4), ml_dtypes.float8_e4m3fn)
  with pytest.raises(WeightsError, match="not in the file"):
    scaled({"a.scale_weight": np.ones(())})
  for scale in (np.ones(3, np.float32), np.full((), np.nan)):
    with pytest.raises(WeightsError, match="one for each output"):
      scaled({"a.weight": weight, "a.scale_weight": scale})
  with pytest.raises(WeightsError, match="8-bit floats"):
    scaled({"a.weight": np.ones(2), "a.scale_weight": np.ones(())})


@pytest.fixture(scope="module")
def tensors(tmp_path_factory):
  path = tmp_path_factory.mktemp("x") / "x.safetensors"
  return read_safetensors(write_family(path, "ldm-unconditional"))


def opened(tmp_path, tensors):
  path = str(tmp_path / "y.safetensors")
  write_safetensors(path, tensors)
  return ldm_jax.from_single_file(path)[1].unet["params"]["conv_in"]["kernel"]


def test_a_file_of_e5m2_is_upcast(tmp_path, tensors):
  half = {
    name: array.astype(ml_dtypes.float8_e5m2) for name, array in tensors.items()
  }
  name = f"{UNET}input_blocks.0.0.weight"
  expected = half[name].astype(np.float32)
  found = opened(tmp_path, half)
  assert found.dtype == np.float32
  same = np.testing.assert_array_equal
  same(found, expected.transpose(2, 3, 1, 0))
  scale = {f"{UNET}input_blocks.0.0.scale_weight": np.full((), 2, np.float32)}
  mark = {f"{UNET}scaled_fp8": np.zeros(2, ml_dtypes.float8_e5m2)}
  same(opened(tmp_path, half | scale | mark), 2 * jax.device_get(found))


@pytest.mark.parametrize("dtype", ["int8", "uint8", "complex64", "bool"])
def test_a_file_of_other_numbers_is_refused_by_name(tmp_path, tensors, dtype):
  name = f"{UNET}input_blocks.0.0.weight"
  with pytest.raises(WeightsError, match=f"{dtype}; needed are floating-point"):
    opened(tmp_path, tensors | {name: np.ones_like(tensors[name], dtype)})
