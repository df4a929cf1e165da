"""Distances between sets of images, against closed forms and definitions."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from skimage.metrics import structural_similarity

from ldm_jax.evaluation.metrics import distribution_distances, resizing
from ldm_jax.evaluation.metrics.frechet import Moments, frechet_distance
from ldm_jax.evaluation.metrics.ssim import ssim


def normal(seed, *shape):
  return np.random.default_rng(seed).standard_normal(shape)


def test_moments_are_those_of_all_rows_in_whatever_order():
  rows = 5 + normal(0, 300, 12) @ normal(1, 12, 12)
  parts = [rows[:7], rows[7:100], rows[100:101], rows[101:]]
  for order in itertools.permutations(parts):
    found = Moments.of(order[0])
    for part in order[1:]:
      found = found + Moments.of(part)
    assert found.count == 300
    np.testing.assert_allclose(found.mean, rows.mean(0), rtol=1e-12)
    np.testing.assert_allclose(
      found.covariance, np.cov(rows, rowvar=False), rtol=1e-9, atol=1e-12
    )
  whole = Moments.of(rows)
  assert abs(frechet_distance(whole, found)) < 1e-9


def gaussian(mean, covariance, count=1000):
  return Moments(count, mean, covariance * (count - 1))


def test_the_distance_of_gaussians_that_commute():
  """sum (m1 - m2)^2 + (s1 - s2)^2, in any basis."""
  rng = np.random.default_rng(2)
  m1, m2 = rng.normal(size=(2, 40))
  s1, s2 = rng.uniform(0, 3, (2, 40))
  basis, _ = np.linalg.qr(rng.normal(size=(40, 40)))
  turn = lambda s: (basis * s**2) @ basis.T
  found = frechet_distance(
    gaussian(basis @ m1, turn(s1)), gaussian(basis @ m2, turn(s2))
  )
  expected = np.square(m1 - m2).sum() + np.square(s1 - s2).sum()
  np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_the_distance_of_two_by_two_covariances():
  """Tr (S1 S2)^1/2 = (Tr S1 S2 + 2 sqrt det S1 S2)^1/2 for two dimensions."""
  rng = np.random.default_rng(3)
  for _ in range(20):
    a, b = rng.normal(size=(2, 2, 2))
    a, b = a @ a.T, b @ b.T
    product = a @ b
    root = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    zero = np.zeros(2)
    found = frechet_distance(gaussian(zero, a), gaussian(zero, b))
    expected = np.trace(a) + np.trace(b) - 2 * root
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


def test_few_rows_of_many_features():
  """Rank 63 in 256 dimensions: the same as in the space that they span."""
  x, y = normal(4, 64, 256), 1 + 2 * normal(5, 64, 256)
  found = frechet_distance(Moments.of(x), Moments.of(y))
  basis, _ = np.linalg.qr(np.concatenate([x, y]).T)
  small = frechet_distance(Moments.of(x @ basis), Moments.of(y @ basis))
  np.testing.assert_allclose(found, small, rtol=1e-6)
  assert abs(frechet_distance(Moments.of(x), Moments.of(x))) < 1e-6


def test_the_frechet_distance_of_fewer_images_is_larger():
  """Two halves of one distribution: the bias falls as 1 / N."""
  found = []
  for count in (500, 1000, 2000):
    x, y = normal(count, 2, count, 64)
    found.append(frechet_distance(Moments.of(x), Moments.of(y)))
  ratios = np.divide(found[:-1], found[1:])
  np.testing.assert_allclose(ratios, 2, rtol=0.15)


def test_sets_that_cannot_be_compared_are_refused():
  with pytest.raises(ValueError, match="of the same width"):
    frechet_distance(Moments.of(normal(0, 9, 4)), Moments.of(normal(0, 9, 5)))
  with pytest.raises(ValueError, match="subsets of 1000"):
    distribution_distances.kernel_distance(normal(0, 9, 4), normal(1, 9, 4))
  with pytest.raises(ValueError, match="k is 3"):
    distribution_distances.precision_recall(normal(0, 3, 4), normal(1, 9, 4))
  with pytest.raises(ValueError, match="cannot make 10 splits"):
    distribution_distances.inception_score(normal(0, 3, 4))


def test_kid_is_unbiased_and_that_of_a_shift():
  """Of the same distribution it is 0 on average; by its definition else."""
  x, y = normal(6, 2, 4000, 8)
  found = distribution_distances.kernel_distance(x, y, 200, 500)
  assert abs(found.mean) < 3 * found.std / 200**0.5 + 0.002
  small, other = normal(7, 20, 5), 1 + normal(8, 20, 5)
  kernel = lambda a, b: (np.dot(a, b) / 5 + 1) ** 3
  pairs = [(i, j) for i in range(20) for j in range(20)]
  apart = [(i, j) for i, j in pairs if i != j]
  expected = (
    np.mean([kernel(small[i], small[j]) for i, j in apart])
    + np.mean([kernel(other[i], other[j]) for i, j in apart])
    - 2 * np.mean([kernel(small[i], other[j]) for i, j in pairs])
  )
  found = distribution_distances.kernel_distance(small, other, 3, 20)
  np.testing.assert_allclose(found.mean, expected, rtol=1e-9)


def test_cmmd_by_its_definition():
  x, y = normal(9, 30, 6), 0.5 + normal(10, 20, 6)
  unit = lambda a: a / np.linalg.norm(a, axis=1, keepdims=True)
  kernel = lambda a, b: np.exp(
    -np.square(a[:, None] - b[None]).sum(-1) / 200
  ).mean()
  a, b = unit(x), unit(y)
  expected = 1000 * (kernel(a, a) + kernel(b, b) - 2 * kernel(a, b))
  np.testing.assert_allclose(
    distribution_distances.cmmd(x, 3 * y), expected, rtol=1e-9
  )
  assert distribution_distances.cmmd(x, x) == pytest.approx(0, abs=1e-9)


def test_the_inception_score_of_known_distributions():
  """Certain and uniform over ten classes: 10; uniform predictions: 1."""
  sure = np.tile(100 * np.eye(10), (50, 1))
  assert distribution_distances.inception_score(sure, 1).mean == pytest.approx(
    10, rel=1e-6
  )
  assert distribution_distances.inception_score(0 * sure).mean == pytest.approx(
    1
  )
  found = distribution_distances.inception_score(
    sure + 7
  )  # a constant changes nothing
  np.testing.assert_allclose(
    found, distribution_distances.inception_score(sure)
  )


def test_precision_and_recall_distinguish_collapse_from_noise():
  real = normal(11, 400, 8)
  few = distribution_distances.precision_recall(
    real, 0.1 * normal(12, 400, 8)
  )  # all of one kind
  assert few.precision > 0.9 and few.recall < 0.1 and few.coverage < 0.5
  wild = distribution_distances.precision_recall(
    real, 5 * normal(13, 400, 8)
  )  # much of it nothing
  assert wild.precision < 0.2 and wild.recall > 0.9
  same = distribution_distances.precision_recall(real, normal(14, 400, 8))
  assert min(same.precision, same.recall, same.coverage) > 0.6
  np.testing.assert_allclose(same.density, 1, atol=0.15)


def test_precision_and_recall_by_their_definitions(monkeypatch):
  real, samples = normal(15, 23, 3), 0.7 * normal(16, 31, 3)
  far = lambda a, b: np.linalg.norm(a[:, None] - b[None], axis=-1)
  radii = lambda a: np.sort(far(a, a), 1)[:, 2]
  inside = far(real, samples) <= radii(real)[:, None]
  expected = (
    inside.any(0).mean(),
    (far(real, samples) <= radii(samples)[None]).any(1).mean(),
    inside.sum(0).mean() / 2,
    inside.any(1).mean(),
  )
  for block in (5, 2048):
    monkeypatch.setattr(distribution_distances, "BLOCK", block)
    np.testing.assert_allclose(
      distribution_distances.precision_recall(real, samples, 2), expected
    )


@pytest.mark.parametrize("size", [(11, 11), (40, 33)])
def test_ssim_is_scikit_images(size):
  rng = np.random.default_rng(17)
  x = rng.integers(0, 256, (3, *size, 3), np.uint8)
  noisy = np.clip(x + rng.normal(0, 30, x.shape), 0, 255).astype(np.uint8)
  flat = np.full_like(x, 200)
  for other in (noisy, x, flat):
    found = np.asarray(ssim(jnp.asarray(x), jnp.asarray(other)))
    expected = [
      structural_similarity(
        a,
        b,
        data_range=255,
        channel_axis=-1,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
      )
      for a, b in zip(x, other, strict=True)
    ]
    np.testing.assert_allclose(found, expected, atol=1e-6)
  with pytest.raises(ValueError, match="each side must be 11"):
    ssim(jnp.zeros((1, 8, 8, 3), jnp.uint8), jnp.zeros((1, 8, 8, 3), jnp.uint8))


@pytest.mark.parametrize("size", [(32, 32), (300, 200), (512, 512)])
def test_clean_resizing_is_pillows(size):
  """clean-fid asks Pillow for every channel in floats, and clips."""
  rng = np.random.default_rng(19)
  images = rng.integers(0, 256, (2, *size, 3), np.uint8)
  found = resizing.clean(jnp.asarray(images), 299)
  expected = np.empty((2, 299, 299, 3), np.float32)
  for place in np.ndindex(2, 3):
    channel = images[place[0], :, :, place[1]].astype(np.float32)
    made = Image.fromarray(channel).resize((299, 299), Image.Resampling.BICUBIC)
    expected[place[0], :, :, place[1]] = np.asarray(made)
  np.testing.assert_allclose(found, expected.clip(0, 255), atol=0.02)


def test_legacy_and_clean_resizing():
  rng = np.random.default_rng(18)
  images = jnp.asarray(rng.integers(0, 256, (2, 7, 9, 3), np.uint8))
  for mode in ("legacy", "clean"):
    same = resizing.resized(images[:, :7, :7], 7, mode)
    np.testing.assert_array_equal(same, images[:, :7, :7])
    flat = jnp.full((1, 30, 50, 3), 77, jnp.uint8)
    found = resizing.resized(flat, 12, mode)
    np.testing.assert_allclose(found, np.full((1, 12, 12, 3), 77), atol=1e-4)
  # TensorFlow 1: every second pixel of an image twice as large, unchanged.
  large = jnp.asarray(rng.integers(0, 256, (1, 24, 24, 3), np.uint8))
  half = resizing.legacy(large, 12)
  np.testing.assert_array_equal(half, large[:, ::2, ::2])
  assert float(resizing.clean(large, 12).max()) <= 255
  x = np.zeros((1, 2, 1, 3), np.uint8)
  x[0, 1] = 100
  rows = resizing.legacy(jnp.asarray(x), 4)[0, :, 0, 0]
  np.testing.assert_allclose(rows, [0, 50, 100, 100])
