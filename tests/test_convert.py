"""Tables join both sides completely, and the join reads both ways."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.nn.perceptual import LPIPS
from ldm_jax.weights.convert import convert, parse_table, read_table, revert
from ldm_jax.weights.errors import WeightsError

SMALL = "conv/kernel\tc.weight\tconv\nconv/bias\tc.bias\tsame\n"


def small_tensors():
  rng = np.random.default_rng(0)
  return {
    "c.weight": rng.normal(size=(5, 4, 3, 2)).astype(np.float32),
    "c.bias": rng.normal(size=5).astype(np.float32),
  }


def test_reverting_inverts_converting():
  table, tensors = parse_table(SMALL), small_tensors()
  back = revert(table, convert(table, tensors))
  assert back.keys() == tensors.keys()
  for name, tensor in tensors.items():
    np.testing.assert_array_equal(back[name], tensor)


def test_a_converted_convolution_convolves_alike():
  """lax itself knows both layouts, OIHW and HWIO."""
  tensors = small_tensors()
  params = convert(parse_table(SMALL), tensors)
  x = jnp.asarray(np.random.default_rng(1).normal(size=(1, 6, 6, 4)))
  theirs, ours = (
    jax.lax.conv_general_dilated(
      x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", layout, "NHWC")
    )
    for kernel, layout in [
      (tensors["c.weight"].astype(x.dtype), "OIHW"),
      (params["conv"]["kernel"].astype(x.dtype), "HWIO"),
    ]
  )
  np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def shapes(tree):
  """Shapes by path."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
    for path, leaf in leaves
  }


def test_the_tables_name_every_parameter_of_lpips_once():
  x = jnp.zeros((1, 16, 16, 3))
  params = jax.eval_shape(LPIPS().init, jax.random.key(0), x, x)["params"]
  trunk = {row.ours for row in read_table("vgg16").rows}
  heads = {row.ours for row in read_table("lpips").rows}
  assert shapes(params).keys() == heads | {f"trunk/{name}" for name in trunk}


def test_the_files_of_vgg16_and_lpips_have_the_shapes_of_ours():
  """Names and shapes as torchvision 0.27 and lpips 0.1.4 write them."""
  widths = [3, 64, 64, 128, 128, *[256] * 3, *[512] * 6]
  places = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
  trunk = {f"classifier.{k}.{leaf}": (1,) for k in (0, 3, 6) for leaf in "wb"}
  for place, before, after in zip(places, widths[:-1], widths[1:], strict=True):
    trunk[f"features.{place}.weight"] = (after, before, 3, 3)
    trunk[f"features.{place}.bias"] = (after,)
  heads = {
    f"lin{k}.model.1.weight": (1, width, 1, 1)
    for k, width in enumerate([64, 128, 256, 512, 512])
  }
  make = lambda sizes: {k: np.empty(s, np.float32) for k, s in sizes.items()}
  params = convert(read_table("lpips"), make(heads))
  params["trunk"] = convert(read_table("vgg16"), make(trunk))
  x = jnp.zeros((1, 16, 16, 3))
  needed = jax.eval_shape(LPIPS().init, jax.random.key(0), x, x)["params"]
  assert shapes(params) == shapes(needed)


def test_every_leftover_on_either_side_is_listed():
  table, tensors = parse_table(SMALL), small_tensors()
  tensors["d.bias"] = tensors.pop("c.bias")
  with pytest.raises(
    WeightsError, match=r"missing c\.bias; unexpected d\.bias"
  ):
    convert(table, tensors)
  params = convert(table, small_tensors())
  params["norm"] = {"scale": params["conv"].pop("bias")}
  with pytest.raises(
    WeightsError, match="missing conv/bias; unexpected norm/scale"
  ):
    revert(table, params)


def test_ignored_names_may_be_there_or_not():
  table = parse_table(f"{SMALL}-\thead.*\tignore\n")
  tensors = small_tensors()
  params = convert(table, tensors)
  tensors["head.0.weight"] = np.zeros(3)
  assert shapes(convert(table, tensors)) == shapes(params)
  assert revert(table, params).keys() == small_tensors().keys()


def test_a_tensor_of_another_rank_is_refused():
  tensors = {**small_tensors(), "c.weight": np.zeros((5, 4))}
  with pytest.raises(WeightsError, match=r"c\.weight has shape \(5, 4\)"):
    convert(parse_table(SMALL), tensors)


@pytest.mark.parametrize(
  "text, words",
  [
    ("a\tb\tsame\na\tc\tsame", "repeats a"),
    ("a\tc\tsame\nb\tc\tsame", "repeats c"),
    ("a\tb\ttwisted", "twisted"),
    ("a b same", "tabs"),
    ("a\tb\tignore", "ignore"),
  ],
)
def test_a_faulty_table_is_refused(text, words):
  with pytest.raises(WeightsError, match=words):
    parse_table(text)
