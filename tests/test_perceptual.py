"""LPIPS is a distance, equals its formula, and has finite gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import random_variables
from numpy.lib.stride_tricks import sliding_window_view

from ldm_jax.nn.encoders.lpips import LPIPS, SCALE, SHIFT

lpips = LPIPS(width=4)
distances = jax.jit(lpips.apply)


def random_images(seed, shape=(2, 21, 18, 3)):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.uniform(-1, 1, shape), jnp.float32)


@pytest.fixture(scope="module")
def params():
  x = jnp.zeros((1, 16, 16, 3))
  params = random_variables(lpips, x, x)
  # The weights of a distance are positive.
  return {
    "params": jax.tree_util.tree_map_with_path(
      lambda path, p: jnp.abs(p) if "head" in path[0].key else p,
      params["params"],
    )
  }


def reference(params, x, y):
  """The formula in float64 numpy, one image pair at a time."""
  params = jax.tree.map(lambda p: np.asarray(p, np.float64), params["params"])

  def features(image):
    image = (np.asarray(image, np.float64) - SHIFT) / SCALE
    for stage, depth in enumerate([2, 2, 3, 3, 3], start=1):
      if stage > 1:
        h, w = image.shape[0] // 2, image.shape[1] // 2
        image = image[: 2 * h, : 2 * w].reshape(h, 2, w, 2, -1).max((1, 3))
      for layer in range(1, depth + 1):
        conv = params["trunk"][f"conv{stage}_{layer}"]
        padded = np.pad(image, ((1, 1), (1, 1), (0, 0)))
        windows = sliding_window_view(padded, (3, 3), (0, 1))
        image = np.einsum("hwcij,ijco->hwo", windows, conv["kernel"])
        image = np.maximum(image + conv["bias"], 0)
      yield image / (np.linalg.norm(image, axis=-1, keepdims=True) + 1e-10)

  total = 0.0
  for stage, (fx, fy) in enumerate(zip(features(x), features(y), strict=True)):
    head = params[f"head{stage + 1}"]["kernel"][0, 0, :, 0]
    total += ((fx - fy) ** 2 @ head).mean()
  return total


def test_distances_equal_the_formula_in_numpy(params):
  x, y = random_images(1), random_images(2)
  expected = [reference(params, *pair) for pair in zip(x, y, strict=True)]
  np.testing.assert_allclose(distances(params, x, y), expected, rtol=1e-5)


def test_it_is_symmetric_positive_and_zero_for_equal_images(params):
  x, y = random_images(1), random_images(2)
  assert (distances(params, x, x) < 1e-12).all()  # compilers fuse roundings
  assert (distances(params, x, y) > 1e-3).all()
  np.testing.assert_allclose(
    distances(params, x, y), distances(params, y, x), rtol=1e-6
  )


def test_a_distance_does_not_depend_on_the_rest_of_the_batch(params):
  x, y = random_images(1), random_images(2)
  single = [distances(params, x[i : i + 1], y[i : i + 1])[0] for i in (0, 1)]
  np.testing.assert_allclose(distances(params, x, y), single, rtol=1e-5)


flat = jnp.zeros((1, 16, 16, 3))
rough = random_images(1, flat.shape)
gradient = jax.jit(jax.grad(lambda *args: lpips.apply(*args).sum(), (0, 1)))


@pytest.mark.parametrize(
  "x, y",
  [
    (rough, rough),
    (flat, flat),
    (flat, rough),
    (rough, flat),
    (flat, flat + 1),
  ],
)
@pytest.mark.parametrize("bias", [0.0, -1e3])
def test_gradients_are_finite_everywhere(params, x, y, bias):
  """A bias of -1,000 makes every feature zero, where a norm has no gradient."""
  params = jax.tree.map(
    lambda p: np.asarray(p) + np.float32(bias * (p.ndim == 1)), params
  )
  gradients = gradient(params, x, y)
  assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(gradients))


def test_bfloat16_computes_nearly_the_same_and_returns_float32(params):
  x, y = random_images(1), random_images(2)
  coarse = jax.jit(LPIPS(width=4, dtype=jnp.bfloat16).apply)(params, x, y)
  assert coarse.dtype == jnp.float32
  np.testing.assert_allclose(coarse, distances(params, x, y), rtol=0.05)


def count(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_the_full_width_has_the_published_number_of_parameters():
  """14,714,688 of VGG16's convolutions and 1,472 of the heads (LPIPS v0.1)."""
  x = jnp.zeros((1, 256, 256, 3))
  params = jax.eval_shape(LPIPS().init, jax.random.key(0), x, x)["params"]
  assert count(params.pop("trunk")) == 14_714_688
  assert count(params) == 1_472


def test_random_heads_are_positive():
  x = jnp.zeros((1, 16, 16, 3))
  params = jax.jit(lpips.init)(jax.random.key(0), x, x)["params"]
  params.pop("trunk")
  heads = np.concatenate([h.ravel() for h in jax.tree.leaves(params)])
  assert (heads >= 0).all() and (heads <= 0.2).all()


def test_images_too_small_for_the_last_features_are_refused(params):
  x = jnp.zeros((1, 15, 64, 3))
  with pytest.raises(ValueError, match="15x64 pixels are too small"):
    lpips.apply(params, x, x)
