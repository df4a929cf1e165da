"""What is measured of first stages: frequencies, latents, patterns, text."""

import numpy as np
import pytest

from ldm_jax.evaluation.first_stage.legibility import SIZES, TextPages
from ldm_jax.evaluation.first_stage.patterns import (
  ALL,
  MARGIN,
  TILE,
  overview,
  pattern_charts,
  responses,
  summary,
)
from ldm_jax.evaluation.metrics.latent_neighbours import (
  interpolated_latents,
  nearest_by_cosine,
)
from ldm_jax.evaluation.metrics.latent_statistics import LatentStatistics
from ldm_jax.evaluation.metrics.radial_bands import (
  IMAGE_BANDS,
  frequency_error,
  latent_spectrum,
)


def noise(*shape, seed=0):
  return np.random.default_rng(seed).standard_normal(shape)


def filtered(images, keep):
  """Images of the frequencies, in cycles per pixel, that `keep` is true of."""
  height, width = images.shape[1:3]
  radius = np.hypot(
    np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None]
  )
  spectrum = np.fft.fft2(images, axes=(1, 2)) * keep(radius)[..., None]
  return np.fft.ifft2(spectrum, axes=(1, 2)).real


def test_equal_images_have_no_error_at_any_frequency():
  images = noise(2, 64, 64, 3)
  assert frequency_error(images, images) == dict.fromkeys(IMAGE_BANDS, 0.0)


def test_a_uniform_image_has_the_error_1_at_every_frequency():
  images = noise(2, 64, 64, 3)
  flat = np.full_like(images, 0.7)
  for error in frequency_error(images, flat).values():
    assert error == pytest.approx(1)
  assert frequency_error(0 * images, flat) == {}


def test_a_low_pass_loses_the_bands_above_its_limit():
  images = noise(2, 128, 128, 3)
  found = frequency_error(images, filtered(images, lambda f: f <= 1 / 8))
  assert [found[name] > 0.9 for name in IMAGE_BANDS] == [
    *(False, False, False, True, True)
  ]
  assert max(found[name] for name in list(IMAGE_BANDS)[:2]) < 0.01


def test_half_of_the_contrast_has_a_quarter_of_the_power_as_its_error():
  images = noise(1, 64, 64, 1)
  for error in frequency_error(images, images / 2).values():
    assert error == pytest.approx(0.25)


def test_gaussian_latents_have_their_moments_and_divergence():
  mean, std = np.array([0.0, 2.0]), np.array([1.0, 0.5])
  z = mean + std * noise(8, 64, 64, 2)
  found = LatentStatistics.of(z, np.zeros_like(z))
  np.testing.assert_allclose(found.mean, mean, atol=0.02)
  np.testing.assert_allclose(found.std, std, rtol=0.02)
  np.testing.assert_allclose(found.kurtosis, 3, rtol=0.05)
  # KL(N(m, 1) || N(0, 1)) = m^2 / 2, here over random m.
  np.testing.assert_allclose(found.kl, (mean**2 + std**2) / 2, rtol=0.05)
  assert LatentStatistics.of(z).kl is None
  zero = np.zeros((1, 4, 4, 1))
  standard = LatentStatistics.of(zero, zero)
  np.testing.assert_array_equal(standard.kl, 0)
  assert standard.spectrum == {}
  assert standard.to_json()["std"] == [0.0]


def test_uniform_latents_have_their_kurtosis():
  z = np.random.default_rng(0).uniform(size=(4, 64, 64, 1))
  assert LatentStatistics.of(z).kurtosis[0] == pytest.approx(1.8, abs=0.03)


def test_the_spectrum_of_latents_is_flat_for_noise_only():
  z = noise(8, 32, 32, 4)
  for power in latent_spectrum(z).values():
    assert power == pytest.approx(1, abs=0.05)
  smooth = latent_spectrum(filtered(z, lambda f: f <= 1 / 8))
  assert smooth["0-1/8"] > 5
  assert smooth["1/4-1/2"] < 1e-9
  scaled = latent_spectrum(z * np.array([1, 10, 100, 1000]))
  np.testing.assert_allclose(
    list(scaled.values()), list(latent_spectrum(z).values())
  )


def test_neighbours_are_the_most_similar_others():
  rows = np.array([[1, 0], [2, 0.1], [0, 1], [0.1, 3]])
  assert nearest_by_cosine(rows).tolist() == [1, 0, 3, 2]
  with pytest.raises(ValueError, match="give 2 or more"):
    nearest_by_cosine(rows[:1])


def test_latents_are_interpolated_on_a_circle():
  z = np.array([[1.0, 0.0], [0.0, 1.0]]).reshape(2, 1, 1, 2)
  half = interpolated_latents(z)
  np.testing.assert_allclose(half, np.full_like(z, 0.5**0.5), rtol=1e-6)
  np.testing.assert_allclose(interpolated_latents(z, 0.0), z, atol=1e-7)
  np.testing.assert_allclose(interpolated_latents(z, 1.0), z[::-1], atol=1e-7)
  same = np.stack([z[0], z[0]])
  np.testing.assert_allclose(interpolated_latents(same), same)


@pytest.mark.parametrize("side", [64, 160])
def test_patterns_keep_their_own_contrast_and_phase(side):
  charts = pattern_charts(side)
  for response in responses(charts):
    assert response.contrast == pytest.approx(1)
    assert response.phase == pytest.approx(0, abs=1e-6)
  halved = (charts.astype(float) / 2).astype(np.uint8)
  for response in responses(halved):
    assert response.contrast == pytest.approx(0.5, abs=0.01)
  grey = np.full_like(charts, 128)
  assert {r.phase for r in responses(grey)} == {None}
  assert summary(responses(grey)) == {
    "contrast_2_to_4_px": pytest.approx(0),
    "contrast_6_to_16_px": pytest.approx(0),
  }
  inside = TILE - 2 * MARGIN
  assert overview(charts).shape == (4 * inside, 4 * inside, 3)


def test_a_shift_turns_the_phase_of_patterns():
  shifted = np.roll(pattern_charts(TILE), 1, axis=2)
  for pattern, response in zip(ALL, responses(shifted), strict=True):
    turned = 0 if pattern.kind == "horizontal" else 360 / pattern.period
    assert response.phase == pytest.approx(turned, abs=1)


def test_means_of_two_pixels_lose_the_finest_patterns():
  charts = pattern_charts(TILE).astype(float)
  pairs = (charts + np.roll(charts, 1, axis=2)) / 2
  found = {r.pattern: r for r in responses(pairs.astype(np.uint8))}
  for pattern, response in found.items():
    lost = 1.0
    if pattern.kind != "horizontal":
      lost = np.cos(np.pi / pattern.period)
    assert response.contrast == pytest.approx(lost, abs=0.02)


@pytest.mark.parametrize("size", SIZES)
def test_text_is_read_on_its_own_pages(size):
  pages = TextPages.of(size, 64)
  assert set(pages.indices.ravel()) == set(range(62))
  assert pages.fraction_read(pages.images) == 1
  assert pages.fraction_read(pages.images // 2 + 64) == 1
  assert pages.fraction_read(255 - pages.images) == 0
  assert pages.fraction_read(np.full_like(pages.images, 255)) == 0


def test_small_text_is_lost_first():
  fractions = []
  for size in SIZES:
    pages = TextPages.of(size, 128)
    small = pages.images.reshape(-1, 32, 4, 32, 4, 3).mean((2, 4))
    blurred = small.repeat(4, 1).repeat(4, 2).astype(np.uint8)
    fractions.append(pages.fraction_read(blurred))
  assert fractions == sorted(fractions)
  assert fractions[0] < 0.5 < fractions[-1]
