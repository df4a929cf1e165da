"""bfloat16's operators on a CPU are those that were faster on this machine."""

import concurrent.futures
import json
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax import measured_operators
from ldm_jax.measured_operators import bfloat16_gain, use_measured_operators
from ldm_jax.nn import layers
from ldm_jax.nn.operators import choice
from ldm_jax.nn.operators.convolution import convolve
from ldm_jax.runtime import machine_table

WIDE = (3, 3, 128, 128)
ONE = (1, 1, 128, 128)


@pytest.fixture
def gain():
  """Sets the gain of products in bfloat16; afterwards it is assumed again."""
  yield lambda value: choice.set_bfloat16_gain(lambda: value)
  choice.set_bfloat16_gain(None)


@pytest.mark.parametrize(
  ("value", "small", "few", "is_cast"),
  [
    (2.0, "im2col", "im2col", False),
    (1.1, "winograd", "im2col", False),
    (0.8, "winograd", "im2col", True),
  ],
)
def test_operators_of_bfloat16_follow_the_gain(
  gain, value, small, few, is_cast
):
  gain(value)
  choose = choice.choose_convolution
  assert choose((2, 16, 16, 128), WIDE, jnp.bfloat16) == small
  assert choose((2, 8, 8, 128), WIDE, jnp.bfloat16) == few
  assert choose((2, 16, 16, 128), ONE, jnp.bfloat16) == "pointwise"
  for name in ("im2col", "pointwise", "product"):
    assert choice.is_cast(name, jnp.bfloat16) == is_cast
    assert not choice.is_cast(name, jnp.float32)
  assert choice.is_cast("winograd", jnp.bfloat16)
  with choice.operators("xla"):
    assert not choice.is_cast("product", jnp.bfloat16)


def products(text):
  return [line for line in text.splitlines() if "dot_general" in line]


@pytest.mark.parametrize("kernel", [WIDE, ONE])
def test_convolutions_that_are_cast_are_rounded_once(gain, kernel):
  rng = np.random.default_rng()
  draw = lambda shape: jnp.asarray(rng.standard_normal(shape), jnp.bfloat16)
  x, w = draw((1, 4, 6, 128)), draw(kernel)
  pad = kernel[0] // 2
  convolved = lambda x, w: convolve(x, w, (1, 1), ((pad, pad),) * 2)
  lines = []
  for value in (2.0, 0.5):
    gain(value)
    run = jax.jit(lambda x, w: convolved(x, w))
    lines.append(products(run.lower(x, w).as_text()))
  assert all(lines) and all("bf16" in line for line in lines[0])
  assert not any("bf16" in line for line in lines[1])
  found = run(x, w)
  with choice.operators("xla"):
    exact = convolve(
      *(a.astype(jnp.float32) for a in (x, w)),
      (1, 1),
      ((pad, pad),) * 2,
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
  assert found.dtype == jnp.bfloat16
  np.testing.assert_allclose(
    np.asarray(found, np.float32), exact, rtol=2**-8, atol=1e-3
  )


def test_dense_layers_are_cast_and_their_gradients_keep_the_format(gain):
  class Layer(layers.nn.Module):
    @layers.nn.compact
    def __call__(self, x):
      return layers.dense(x, 24, name="one", dtype="bfloat16")

  rng = np.random.default_rng()
  x = jnp.asarray(rng.standard_normal((2, 5, 64)), jnp.bfloat16)
  params = Layer().init(jax.random.key(0), x)
  loss = lambda params, x: (Layer().apply(params, x) ** 2).sum()
  texts, found = [], []
  for value in (2.0, 0.5):
    gain(value)
    run = jax.jit(lambda *args: jax.value_and_grad(loss, (0, 1))(*args))
    texts.append(run.lower(params, x).as_text())
    found.append(run(params, x))
  lines = list(map(products, texts))
  assert all(lines) and all("bf16" in line for line in lines[0])
  assert not any("bf16" in line for line in lines[1])
  own, cast = found
  formats = lambda tree: jax.tree.map(lambda leaf: leaf.dtype, tree)
  assert formats(own) == formats(cast)
  for a, b in zip(*map(jax.tree.leaves, found), strict=True):
    a, b = (np.asarray(each, np.float32) for each in (a, b))
    np.testing.assert_allclose(a, b, atol=0.02 * np.abs(b).max())


def test_the_gain_is_measured_once_and_kept(gain, tmp_path, monkeypatch):
  calls = []
  measure = lambda: calls.append(1) or 0.8
  monkeypatch.setattr(measured_operators, "bfloat16_gain", measure)
  use_measured_operators(tmp_path)
  assert choice.choose_convolution((2, 16, 16, 128), WIDE, jnp.float32)
  assert not calls  # float32 needs none
  for _ in range(2):
    assert choice.is_cast("product", jnp.bfloat16)
  use_measured_operators(tmp_path)  # as in a later process
  assert choice.is_cast("product", jnp.bfloat16) and calls == [1]
  (path,) = tmp_path.iterdir()
  assert path.name.startswith("bfloat16_gain-")
  assert json.loads(path.read_text())["value"] == 0.8
  use_measured_operators(None)
  assert not choice.is_cast("product", jnp.bfloat16)
  use_measured_operators("gs://bucket/cache")
  assert not choice.is_cast("product", jnp.bfloat16) and calls == [1]


def test_processes_of_one_job_compute_by_the_same_operators(
  gain, tmp_path, monkeypatch
):
  monkeypatch.setattr(measured_operators, "bfloat16_gain", lambda: 0.1)
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  use_measured_operators(tmp_path)
  assert not choice.is_cast("product", jnp.bfloat16)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"value": -1}'])
def test_a_table_that_cannot_be_used_is_written_anew(tmp_path, text):
  measured = machine_table.measured_number
  measured(tmp_path, "gain", lambda: 3.0)
  (path,) = tmp_path.iterdir()
  path.write_text(text)
  assert measured(tmp_path, "gain", lambda: 1.5) == 1.5
  assert measured(tmp_path, "gain", lambda: 2.5) == 1.5


def test_other_flags_and_versions_are_measured_for_themselves(
  tmp_path, monkeypatch
):
  measured = machine_table.measured_number
  assert measured(tmp_path, "gain", lambda: 1.5) == 1.5
  monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_max_isa=AVX2")
  assert measured(tmp_path, "gain", lambda: 0.5) == 0.5
  monkeypatch.undo()
  assert measured(tmp_path, "gain", lambda: 9.0) == 1.5
  assert len(list(tmp_path.iterdir())) == 2


def test_the_first_of_several_processes_is_followed(tmp_path):
  """Another one writes its number while this one measures."""
  measured = machine_table.measured_number
  other = lambda: measured(tmp_path, "gain", lambda: 0.7)
  assert measured(tmp_path, "gain", lambda: other() + 1) == 0.7


def test_threads_wait_for_one_measurement(gain):
  calls, start = [], threading.Barrier(4)

  def measure():
    time.sleep(0.05)
    calls.append(1)
    return 0.5

  choice.set_bfloat16_gain(measure)

  def ask(_):
    start.wait()
    return choice.is_cast("product", jnp.bfloat16)

  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    assert all(pool.map(ask, range(4)))
  assert calls == [1]


def test_programs_of_another_gain_are_not_read(gain):
  """The gain is a part of their key, for models in bfloat16 alone."""
  calls = []
  choice.set_bfloat16_gain(lambda: calls.append(1) or 0.5)
  plain = choice.operators_of(layers.GroupNorm(4, 1e-5, "float32"))
  assert plain() == choice.current_operators() and not calls
  found = []
  for value in (2.0, 1.1, 0.5):
    gain(value)
    half = choice.operators_of("parts", layers.GroupNorm(4, 1e-5, jnp.bfloat16))
    found.append(half())
  assert len(set(found)) == 3
  with choice.operators("xla"):
    assert half() == "xla"


def test_a_folder_that_cannot_be_written_keeps_nothing(tmp_path):
  missing = tmp_path / "none"
  assert machine_table.measured_number(missing, "gain", lambda: 1.5) == 1.5
  assert not missing.exists()


def test_the_measurement_is_a_ratio_of_times_and_may_be_under_a_trace():
  found = []
  with jax.transfer_guard("disallow"):
    jax.eval_shape(lambda: found.append(bfloat16_gain()))
  assert 0.01 < found[0] < 100
