"""PSNR agrees with scikit-image on whole grey levels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.evaluation.metrics.psnr import psnr


def pairs(noise):
  rng = np.random.default_rng(0)
  levels = rng.integers(256, size=(3, 9, 7, 3))
  changed = np.clip(levels + rng.normal(size=levels.shape) * noise, 0, 255)
  return levels.astype(np.uint8), np.round(changed).astype(np.uint8)


def to_float(levels):
  return (levels / 127.5 - 1.0).astype(np.float32)


@pytest.mark.parametrize("noise", [1, 10, 100])
@pytest.mark.parametrize("convert", [np.asarray, jnp.asarray])
def test_psnr_equals_scikit_images_for_each_image(noise, convert):
  metrics = pytest.importorskip("skimage.metrics")
  expected = [
    metrics.peak_signal_noise_ratio(*pair)
    for pair in zip(*pairs(noise), strict=True)
  ]
  ours = psnr(*[convert(to_float(levels)) for levels in pairs(noise)])
  np.testing.assert_allclose(ours, expected, rtol=1e-6)


def test_all_256_levels_are_rounded_exactly():
  levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
  nudged = to_float(levels) + np.float32(0.49 / 127.5)
  assert psnr(to_float(levels), nudged) == np.inf
  # One level off everywhere is an error of one, except at the clipped end.
  above = to_float(levels) + np.float32(0.51 / 127.5)
  expected = 10 * np.log10(255**2 / (255 / 256))
  np.testing.assert_allclose(psnr(to_float(levels), above), expected, rtol=1e-6)


def test_values_outside_the_range_count_as_black_or_white():
  white = np.ones((1, 4, 4, 3), np.float32)
  assert psnr(white, 3 * white) == np.inf
  assert psnr(white, -3 * white) == 0


def test_jitted_psnr_equals_numpys():
  images, others = (to_float(levels) for levels in pairs(10))
  np.testing.assert_allclose(
    jax.jit(psnr)(images, others), psnr(images, others), rtol=1e-6
  )
