"""Tables convert every parameter, in both directions."""

import collections.abc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.errors import WeightsError
from ldm_jax.nn.encoders.lpips import LPIPS
from ldm_jax.weights.naming.convert import (
  MAX_NAMES,
  Row,
  convert,
  make_table,
  parse_table,
  read_table,
  revert,
)
from ldm_jax.weights.naming.layouts import LAYOUTS, Part

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


def test_a_converted_convolution_gives_the_same_result():
  """lax supports both layouts, OIHW and HWIO."""
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
  trunk = {row.path for row in read_table("vgg16").rows}
  heads = {row.path for row in read_table("lpips").rows}
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
  make = lambda sizes: {k: np.zeros(s, np.float32) for k, s in sizes.items()}
  params = convert(read_table("lpips"), make(heads))
  params["trunk"] = convert(read_table("vgg16"), make(trunk))
  x = jnp.zeros((1, 16, 16, 3))
  expected = jax.eval_shape(LPIPS().init, jax.random.key(0), x, x)["params"]
  assert shapes(params) == shapes(expected)


def test_every_unmatched_name_on_either_side_is_listed():
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


def test_ignored_names_are_optional():
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
  "text, message",
  [
    ("a\tb\tsame\na\tc\tsame", "repeats a"),
    ("a\tc\tsame\nb\tc\tsame", "repeats c"),
    ("a\tb\ttwisted", "twisted"),
    ("a b same", "tabs"),
    ("a\tb\tignore", "ignore"),
  ],
)
def test_a_faulty_table_is_refused(text, message):
  with pytest.raises(WeightsError, match=message):
    parse_table(text)


# Every layout, and a stack of two parts in three heads.
SHAPED = make_table(
  [
    Row("same", "s", "same", (2, 3)),
    Row("conv", "c", "conv", (3, 3, 2, 5)),
    Row("dense", "d", "dense", (2, 5)),
    Row("pointwise", "p", "pointwise", (2, 5)),
    Row("line", "l", "line", (2, 5)),
    Row("grid", "g", "grid", (3, 4)),
    Row("first", "both", "dense", (2, 6), Part(0, 2)),
    Row("second", "both", "dense", (2, 6), Part(1, 2)),
    Row("odd", "heads", "line", (2, 6), Part(0, 2, 3)),
    Row("even", "heads", "line", (2, 6), Part(1, 2, 3)),
  ],
  [],
)


def shaped_tensors():
  rng = np.random.default_rng(0)
  tensors = {
    row.foreign_name: rng.normal(size=row.foreign_shape())
    for row in SHAPED.rows
  }
  # Not any numbers are a table of rows and columns.
  return tensors | {"g": LAYOUTS["grid"].to_foreign(rng.normal(size=(3, 4)))}


def test_every_layout_is_in_the_table_of_all():
  assert {row.layout for row in SHAPED.rows} == set(LAYOUTS)


def test_reverting_inverts_converting_for_every_layout():
  tensors = shaped_tensors()
  params = convert(SHAPED, tensors)
  assert shapes(params) == {row.path: row.shape for row in SHAPED.rows}
  back = revert(SHAPED, params)
  assert back.keys() == tensors.keys()
  for name, tensor in tensors.items():
    np.testing.assert_array_equal(back[name], tensor)


def test_only_projections_divided_by_heads_are_copied():
  tensors = shaped_tensors()
  params = convert(SHAPED, tensors)
  for row in SHAPED.rows:
    is_view = np.shares_memory(params[row.path], tensors[row.foreign_name])
    assert is_view == (row.foreign_name not in ("heads", "g")), row


class Reading(collections.abc.Mapping):
  """Makes an array at every reading; no earlier one may still be held."""

  def __init__(self, arrays):
    self.arrays, self.held = arrays, []

  def __getitem__(self, name):
    assert not any(array() is not None for array in self.held), name
    array = self.arrays[name].copy()
    self.held.append(weakref.ref(array))
    return array

  def __iter__(self):
    return iter(self.arrays)

  def __len__(self):
    return len(self.arrays)


def test_one_tensor_is_in_memory_at_a_time():
  tensors = shaped_tensors()
  sums = convert(SHAPED, Reading(tensors), place=lambda _, x: float(x.sum()))
  params = convert(SHAPED, tensors)
  assert sums == {name: float(array.sum()) for name, array in params.items()}


def test_each_parameter_is_placed_under_its_path():
  placed = {}
  tensors = small_tensors()
  params = convert(
    parse_table(SMALL),
    tensors,
    place=lambda path, x: placed.setdefault(path, x.astype(np.float16)),
  )
  assert placed.keys() == {"conv/kernel", "conv/bias"}
  assert params["conv"]["bias"] is placed["conv/bias"]
  assert params["conv"]["bias"].dtype == np.float16


def test_axes_of_one_at_the_end_are_free():
  """A matrix is a 1 x 1 convolution; files have it either way."""
  tensors = shaped_tensors()
  params = convert(SHAPED, tensors)
  other = dict(tensors)
  other["d"] = tensors["d"][:, :, None, None]
  other["p"] = tensors["p"][:, :, 0, 0]
  other["l"] = tensors["l"][..., None]
  other["heads"] = tensors["heads"][:, :, 0]
  again = convert(SHAPED, other)
  for name, array in params.items():
    np.testing.assert_array_equal(again[name], array)


@pytest.mark.parametrize(
  "name, shape",
  [("d", (2, 5)), ("c", (5, 2, 3, 1)), ("both", (6, 2)), ("s", (2, 3, 2))],
)
def test_another_shape_is_refused(name, shape):
  tensors = {**shaped_tensors(), name: np.ones(shape)}
  with pytest.raises(WeightsError) as error:
    convert(SHAPED, tensors)
  assert f"{name} has shape {shape}" in str(error.value)
  ours = next(row.path for row in SHAPED.rows if row.foreign_name == name)
  assert f"for {ours}" in str(error.value)


def test_another_shape_of_ours_is_refused():
  params = convert(SHAPED, shaped_tensors())
  params["dense"] = np.ones((5, 2))
  with pytest.raises(WeightsError, match=r"dense has shape \(5, 2\); \(2, 5\)"):
    revert(SHAPED, params)


def test_long_lists_of_names_are_cut():
  tensors = small_tensors()
  extra = MAX_NAMES + 7
  tensors.update({f"x{k:02}": np.ones((k, 2)) for k in range(extra)})
  with pytest.raises(WeightsError) as error:
    convert(parse_table(SMALL), tensors)
  assert f"x{MAX_NAMES - 1} ({MAX_NAMES - 1}, 2), and 7" in str(error.value)
  assert str(error.value).endswith("and 7 more")
