"""Schedules against published numbers and their own definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.diffusion.schedule import Schedule, posterior, q_sample

# ab[0], ab[499], ab[999] as the reference code (LDM's make_beta_schedule, run
# in torch 2.13) prints them, to the digits given.
PUBLISHED = {
  ("scaled_linear", 0.00085, 0.012): (0.99915, 0.277669650, 0.004660099),
  ("scaled_linear", 0.0015, 0.0195): (0.9985, 0.115844491, 0.000142304),
  ("scaled_linear", 0.0015, 0.0155): (0.9985, 0.151077, 0.000668665),
  ("scaled_linear", 0.0015, 0.0205): (0.9985, 0.108576, 0.000096911),
  ("scaled_linear", 0.0001, 0.02): (0.9999, 0.333188, 0.000733412),
  ("linear", 0.0001, 0.02): (0.9999, 0.078587, 0.000040358),
  ("cosine", 0.0001, 0.02): (0.999958716, 0.493843590, 2.43e-9),
}


@pytest.mark.parametrize("spec", PUBLISHED)
def test_published_alpha_bar(spec):
  table = Schedule(*spec).alpha_bar
  np.testing.assert_allclose(table[[0, 499, 999]], PUBLISHED[spec], rtol=2e-3)
  np.testing.assert_allclose(table[[0, 499]], PUBLISHED[spec][:2], rtol=5e-6)
  assert table.dtype == np.float64 and np.all(np.diff(table) < 0)


def test_sqrt_schedule_has_square_rooted_betas():
  betas = Schedule("sqrt", 0.0001, 0.02).betas
  np.testing.assert_allclose(betas**2, np.linspace(0.0001, 0.02, 1000))


def test_sigma_range_of_stable_diffusion():
  # k-diffusion's sigma = sqrt((1 - ab) / ab); the two ends are well known.
  signal, sigma = Schedule().signal_and_sigma(jnp.array([0.0, 999.0]))
  np.testing.assert_allclose(sigma / signal, [0.029167, 14.61464], rtol=2e-5)


@pytest.mark.parametrize("zero", [False, True])
def test_whole_times_are_those_of_the_table_and_the_clean_image_is_one(zero):
  schedule = Schedule(zero_terminal_snr=zero)
  t = jnp.arange(-1, 1000).astype(jnp.float32)
  signal, sigma = schedule.signal_and_sigma(t)
  table = np.append(1.0, schedule.alpha_bar)
  np.testing.assert_allclose(signal, np.sqrt(table), rtol=3e-6)
  np.testing.assert_allclose(sigma, np.sqrt(1 - table), rtol=3e-6)
  assert signal[0] == 1 and sigma[0] == 0


def test_between_whole_times_the_logarithm_is_linear():
  schedule = Schedule()
  expected = 0.75 * np.log(schedule.alpha_bar[7]) + 0.25 * np.log(
    schedule.alpha_bar[8]
  )
  np.testing.assert_allclose(
    schedule.log_alpha_bar(jnp.float32(7.25)), expected, rtol=1e-5
  )


def test_zero_terminal_snr():
  # ab[998] as diffusers' rescale_zero_terminal_snr gives it for SD's schedule.
  schedule = Schedule(zero_terminal_snr=True)
  assert schedule.alpha_bar[-1] == 0
  np.testing.assert_allclose(schedule.alpha_bar[-2], 1.97e-7, rtol=5e-3)
  np.testing.assert_allclose(schedule.alpha_bar[0], Schedule().alpha_bar[0])
  t = jnp.array([998.0, 998.25, 998.75, 999.0])
  signal, sigma = schedule.signal_and_sigma(t)
  assert np.all(np.isfinite(signal)) and np.all(np.diff(signal) < 0)
  assert signal[-1] == 0 and sigma[-1] == 1


def test_q_sample_moments():
  """Mean and variance over 2e5 random numbers are sqrt(ab) x0 and 1 - ab."""
  schedule, count = Schedule(), 200_000
  for t in (0, 10, 100, 500, 999):
    noise = jax.random.normal(jax.random.key(t), (1, count))
    xt = q_sample(
      schedule, jnp.full((1, count), 0.7), jnp.array([t], jnp.float32), noise
    )
    ab = schedule.alpha_bar[t]
    z_mean = (xt.mean() - 0.7 * ab**0.5) / ((1 - ab) / count) ** 0.5
    z_var = (xt.var() / (1 - ab) - 1) / (2 / count) ** 0.5
    assert abs(z_mean) < 4.5 and abs(z_var) < 4.5


def test_posterior_against_the_paper():
  # c1, c2 and the variance of SD's schedule at t = 500, from LDM's buffers.
  schedule = Schedule()
  one, zero = jnp.ones((1, 1)), jnp.zeros((1, 1))
  t, s = jnp.array([500.0]), jnp.array([499.0])
  c1, variance = posterior(schedule, one, zero, t, s)
  c2, _ = posterior(schedule, zero, one, t, s)
  np.testing.assert_allclose(c1[0, 0], 0.003506044, rtol=1e-4)
  np.testing.assert_allclose(c2[0, 0], 0.995746583, rtol=1e-6)
  np.testing.assert_allclose(variance[0], 4.806059e-3, rtol=1e-4)


@pytest.mark.parametrize("pair", [(999, 998), (700, 31), (20, 0), (0, -1)])
def test_posterior_composes_with_q(pair):
  """x_t and then x_s | x_t, x_0 have the moments of q(x_s | x_0)."""
  schedule, x0, noise = Schedule(), jnp.full((1, 1), 1.3), jnp.zeros((1, 1))
  t, s = (jnp.array([time], jnp.float32) for time in pair)
  mean, variance = posterior(
    schedule, x0, q_sample(schedule, x0, t, noise), t, s
  )
  signal, sigma = schedule.signal_and_sigma(s)
  np.testing.assert_allclose(mean[0], signal * 1.3, rtol=1e-5, atol=1e-7)
  slope = (posterior(schedule, x0 * 0, noise + 1, t, s)[0])[0, 0]
  _, sigma_t = schedule.signal_and_sigma(t)
  np.testing.assert_allclose(
    (slope * sigma_t) ** 2 + variance, sigma**2, rtol=2e-4, atol=1e-9
  )


def test_wrong_schedules_are_refused():
  with pytest.raises(ValueError, match="start <= end"):
    Schedule(start=0.02, end=0.01)
  with pytest.raises(ValueError, match="at least 2"):
    Schedule(steps=1)
