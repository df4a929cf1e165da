"""Parameters in 8 bits: rounding, computing, memory, LoRAs, what is refused."""

import dataclasses
import functools
import json
import logging

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from test_pretrained import clip_prompts, folder, model  # noqa: F401, fixtures

import ldm_jax
from ldm_jax.cli import info
from ldm_jax.errors import ConfigError, WeightsError
from ldm_jax.nn.conditioners.embedders import Condition
from ldm_jax.nn.dit.dit import DiT
from ldm_jax.nn.operators.quantized_array import (
  QuantizedArray,
  apply,
  has_quantized,
  is_quantized,
  map_parameters,
)
from ldm_jax.pretrained.convert import ConvertRequest
from ldm_jax.pretrained.lora.leaves import like_leaf
from ldm_jax.pretrained.open_model import LoadOptions, open_model
from ldm_jax.pretrained.quantizer import is_stored, quantized
from ldm_jax.sampling.export.export import ExportRequest
from ldm_jax.sampling.pipeline import Pipeline
from ldm_jax.weights import finite_values
from ldm_jax.weights import quantize as quantizing
from ldm_jax.weights.quantize import quantize

FORMATS = ["int8", "float8_e4m3fn"]


def matrix(seed, shape=(48, 33)):
  generator = np.random.default_rng(seed)
  sizes = np.exp(generator.normal(0, 3, shape[-1]))  # outputs of unlike size
  return (generator.normal(0, 1, shape) * sizes).astype(np.float32)


@pytest.mark.parametrize("shape", [(48, 33), (3, 3, 8, 33)])
def test_int8_is_within_half_a_step_of_each_output(shape):
  wide = matrix(0, shape)
  found = quantize(wide, "int8")
  step = np.abs(wide).reshape(-1, 33).max(0) / 127
  assert found.values.dtype == np.int8 and found.scale.size == 33
  error = np.abs(found.values * found.scale - wide)
  assert (error <= step * (0.5 + 1e-5)).all()
  assert error.max() > step.min() / 4


def test_the_error_is_that_of_the_matrix():
  wide = matrix(1)
  for name in FORMATS:
    found = quantize(wide, name)
    near = found.values.astype(np.float64) * found.scale
    expected = np.linalg.norm(near - wide) / np.linalg.norm(wide)
    np.testing.assert_allclose(found.error, expected, rtol=1e-5)
    assert 0 < found.error < {"int8": 0.02, "float8_e4m3fn": 0.04}[name]


def test_a_matrix_in_8_bit_floats_keeps_every_bit():
  """Its own numbers, whatever power of two scales it; zeros too."""
  wide = matrix(2).clip(-400, 400).astype(ml_dtypes.float8_e4m3fn)
  wide[:, 5] = 0
  for power in (0, -9, 3):
    own = wide.astype(np.float32) * 2.0**power
    found = quantize(own, "float8_e4m3fn")
    assert found.error == 0
    np.testing.assert_array_equal(
      found.values.astype(np.float32) * found.scale, own
    )


def test_the_input_is_left_as_it_was():
  wide = matrix(3)
  before = wide.copy()
  quantize(wide, "int8")
  np.testing.assert_array_equal(wide, before)


def in_8_bits(tree, weight_dtype="int8", dtype="float32"):
  def store(path, leaf):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    if not is_stored(name, leaf.shape):
      return leaf
    return quantized(np.asarray(leaf), weight_dtype, dtype)[0]

  return jax.tree_util.tree_map_with_path(store, tree)


def unboxed(tree):
  return map_parameters(lambda x: x.unbox() if is_quantized(x) else x, tree)


@functools.cache
def transformer(is_scanned):
  """A small DiT away from its zeros, its inputs, and 8-bit parameters."""
  net = DiT(4, 64, depth=4, heads=4, is_scanned=is_scanned)
  rng = np.random.default_rng(7)
  draw = lambda shape, size=1: jax.device_put(
    np.float32(size * rng.standard_normal(shape))
  )
  x, condition = draw((2, 8, 8, 4)), Condition(vector=draw((2, 64)))
  t = jax.device_put(np.float32([3.0, 700.0]))
  shapes = jax.eval_shape(net.init, jax.random.key(0), x, t, condition)
  params = jax.tree.map(lambda leaf: draw(leaf.shape, 0.2), shapes)
  return net, (x, t, condition), in_8_bits(params)


@pytest.mark.parametrize("is_scanned", [False, True])
def test_a_network_computes_with_the_rounded_matrices(is_scanned):
  net, inputs, params = transformer(is_scanned)
  kept = jax.tree.leaves(params, is_leaf=is_quantized)
  assert sum(map(is_quantized, kept)) == 4 * 7 + 1  # blocks, last modulation
  run = jax.jit(lambda params: apply(net, params, *inputs))
  found, expected = run(params), run(unboxed(params))
  np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)
  assert np.abs(expected).max() > 0.1


def test_one_matrix_at_a_time_exists_in_full():
  """Also in the loop of a sampler, out of which XLA would move them."""
  net, (x, t, condition), params = transformer(False)
  wide = unboxed(params)

  def sample(params, x):
    step = lambda x, _: (apply(net, params, x, t, condition), None)
    return jax.lax.scan(step, x, None, length=3)[0]

  def temporaries(params):
    program = jax.jit(sample).lower(params, x).compile()
    return program.memory_analysis().temp_size_in_bytes

  matrices = [
    4 * leaf.values.size
    for leaf in jax.tree.leaves(params, is_leaf=is_quantized)
    if is_quantized(leaf)
  ]
  more = temporaries(params) - temporaries(wide)
  # A quarter of them with jax 0.12, three fifths with 0.10.
  assert more < sum(matrices) * 2 / 3


@pytest.mark.parametrize("weight_dtype", FORMATS)
def test_a_pipeline_is_read_in_8_bits(folder, weight_dtype, caplog):  # noqa: F811
  with caplog.at_level(logging.INFO):
    loaded = open_model(folder, LoadOptions(weight_dtype=weight_dtype))
  assert f"matrices in {weight_dtype}, relative error" in caplog.text
  wide = open_model(folder)
  assert has_quantized(loaded.params.unet)
  assert has_quantized(loaded.params.conditioners)
  assert not has_quantized(loaded.params.first_stage)
  for name in ("unet", "conditioners"):
    expected = in_8_bits(getattr(wide.params, name), weight_dtype)
    jax.tree.map(
      np.testing.assert_array_equal,
      jax.tree.leaves(getattr(loaded.params, name)),
      jax.tree.leaves(expected),
    )


def test_a_single_network_is_read_in_8_bits(folder):  # noqa: F811
  text, rounded = ldm_jax.from_pretrained(
    folder, "text_encoder", weight_dtype="int8"
  )
  assert has_quantized(rounded)
  tokens = jnp.asarray([[3, 5, 7, 2, *[2] * (text.length - 4)]])
  found = jax.jit(lambda params: apply(text, params, tokens).context)(rounded)
  expected = text.apply(unboxed(rounded), tokens).context
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
  _, whole = ldm_jax.from_pretrained(folder, "vae", weight_dtype="int8")
  assert not has_quantized(whole)
  with pytest.raises(ConfigError, match="must be one of int8"):
    ldm_jax.from_pretrained(folder, "vae", weight_dtype="int4")


@pytest.mark.slow
def test_images_are_those_of_the_rounded_matrices(folder):  # noqa: F811
  pipe = Pipeline.open(folder, LoadOptions(weight_dtype="int8"))
  loaded = pipe.loaded
  params = loaded.params.replace(
    unet=unboxed(loaded.params.unet),
    conditioners=unboxed(loaded.params.conditioners),
  )
  wide = Pipeline(dataclasses.replace(loaded, params=params))
  ask = {"prompt": "a cat", "steps": 2, "seed": 5, "height": 16, "width": 16}
  found, expected = (
    np.asarray(each(**ask).images[0], np.int64) for each in (pipe, wide)
  )
  assert np.abs(found - expected).max() <= 1


def test_a_lora_is_merged_and_rounded_again():
  leaf, _ = quantized(matrix(4), "int8", "bfloat16")
  changed = np.asarray(leaf.unbox(), np.float32) + 0.5
  found = like_leaf(changed, leaf, "w")
  assert isinstance(found, QuantizedArray) and found.dtype == "bfloat16"
  expected = quantize(changed, "int8")
  np.testing.assert_array_equal(found.values, expected.values)
  np.testing.assert_array_equal(found.scale, expected.scale)


def test_info_has_the_error_of_every_matrix(folder, capsys):  # noqa: F811
  assert info.main([folder, "--weight_dtype=int8"]) == 0
  networks = json.loads(capsys.readouterr().out)["networks"]
  errors = networks["unet"]["relative error"]
  assert networks["vae"]["relative error"] == {}
  wide = open_model(folder).params.unet["params"]
  path, error = next(iter(errors.items()))
  leaf = functools.reduce(lambda tree, name: tree[name], path.split("/"), wide)
  np.testing.assert_allclose(
    error, quantize(np.asarray(leaf), "int8").error, rtol=1e-6
  )
  assert 0 < max(errors.values()) < 0.05


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: LoadOptions(weight_dtype="int4"), "must be one of int8"),
    (
      lambda: ConvertRequest(
        "a", "b", options=LoadOptions(weight_dtype="int8")
      ),
      "convert writes fp32, fp16, bf16",
    ),
    (
      lambda: ExportRequest("a", "b", options=LoadOptions(weight_dtype="int8")),
      "an exported sampler holds floating-point parameters",
    ),
  ],
)
def test_what_cannot_be_is_one_line(make, message):
  with pytest.raises(ConfigError, match=message):
    make()


def test_what_is_rounded_is_not_saved(folder, tmp_path):  # noqa: F811
  loaded = open_model(folder, LoadOptions(weight_dtype="int8"))
  with pytest.raises(ConfigError, match="cannot be saved"):
    ldm_jax.save_pretrained(loaded.model, loaded.params, str(tmp_path / "a"))
  assert not (tmp_path / "a").exists()


def test_a_large_tensor_is_checked_part_by_part(monkeypatch):
  monkeypatch.setattr(finite_values, "PART", 7)
  array = np.arange(24, dtype=np.float32).reshape(2, 12)
  assert finite_values.check_finite("x", array) is array
  array[0, 3] = np.inf
  array[1, 11] = np.nan
  for each in (array, array.T):  # in parts, and as a whole
    with pytest.raises(WeightsError, match="2 values of 24"):
      finite_values.check_finite("x", each)


def test_blocks_of_outputs_are_rounded_alike(monkeypatch):
  wide = matrix(6, (40, 50)).T  # as a file's matrix is read, transposed
  whole = [quantize(wide, name) for name in FORMATS]
  monkeypatch.setattr(quantizing, "BLOCK", 333)
  for name, expected in zip(FORMATS, whole, strict=True):
    found = quantize(wide, name)
    np.testing.assert_array_equal(found.values, expected.values)
    np.testing.assert_array_equal(found.scale, expected.scale)
    np.testing.assert_allclose(found.error, expected.error, rtol=1e-6)
