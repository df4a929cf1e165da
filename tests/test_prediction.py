"""Every parameterisation is the same knowledge in other words."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.diffusion.guidance import guide
from ldm_jax.diffusion.loss import DenoisingLoss, draw_times
from ldm_jax.diffusion.prediction import Estimate, target, to_pair
from ldm_jax.diffusion.schedule import Schedule, q_sample

SCHEDULE = Schedule()
KINDS = ["eps", "x0", "v"]
T = jnp.array([0.0, 1.0, 17.5, 400.0, 998.5, 999.0])


def draw(seed=0):
  keys = jax.random.split(jax.random.key(seed))
  return [jax.random.normal(key, (len(T), 5, 4, 3)) for key in keys]


@pytest.mark.parametrize("kind", KINDS)
def test_to_pair_inverts_target(kind):
  x0, noise = draw()
  xt = q_sample(SCHEDULE, x0, T, noise)
  pair = to_pair(kind, SCHEDULE, xt, T, target(kind, SCHEDULE, x0, T, noise))
  # Dividing by sigma at t = 0, or by the signal at the end, costs digits.
  np.testing.assert_allclose(pair.x0, x0, atol=2e-5)
  np.testing.assert_allclose(pair.eps, noise, atol=6e-5)


def test_v_at_zero_terminal_snr_is_minus_x0():
  schedule = Schedule(zero_terminal_snr=True)
  x0, noise = draw()
  last = jnp.full((len(T),), 999.0)
  v = target("v", schedule, x0, last, noise)
  np.testing.assert_allclose(v, -x0, atol=1e-6)
  pair = to_pair("v", schedule, noise, last, v)
  np.testing.assert_allclose(pair.x0, x0, atol=1e-6)


@pytest.mark.parametrize("kind", ["x0", "v"])
def test_weighted_losses_agree_across_predictions(kind):
  """min-SNR is one weight on x0's error, so the loss knows no prediction."""
  x0, noise = draw(1)
  wrong = draw(2)
  wrong = Estimate(*wrong)

  def loss(prediction):
    # The same wrong belief about x0, told in either language: eps follows.
    def network(xt, t):
      signal, sigma = SCHEDULE.signal_and_sigma(t)
      shape = (-1, 1, 1, 1)
      eps = (xt - signal.reshape(shape) * wrong.x0) / sigma.reshape(shape)
      return target(prediction, SCHEDULE, wrong.x0, t, eps)

    rule = DenoisingLoss(prediction, min_snr=5.0)
    return rule(SCHEDULE, network, x0, T, noise)

  np.testing.assert_allclose(loss(kind), loss("eps"), rtol=2e-3)


def test_min_snr_weights_of_the_paper():
  snr = np.asarray(SCHEDULE.snr(T))
  for kind, expected in {
    "eps": np.minimum(snr, 5) / snr,
    "x0": np.minimum(snr, 5),
    "v": np.minimum(snr, 5) / (snr + 1),
  }.items():
    weight = DenoisingLoss(kind, min_snr=5.0).weight(SCHEDULE, T)
    np.testing.assert_allclose(weight, expected, rtol=1e-4)


def test_min_snr_refuses_l1():
  with pytest.raises(ValueError, match="squared errors"):
    DenoisingLoss(norm="l1", min_snr=5.0)


def test_a_silent_network_pays_the_variance_of_noise():
  """E|eps|^2 = 1 and E|eps| = sqrt(2 / pi): the loss of a zero-init U-Net."""
  key = jax.random.key(3)
  x0, noise = jax.random.normal(key, (2, 64, 4096))
  t = draw_times(key, SCHEDULE, 64)
  quiet = lambda xt, t: jnp.zeros_like(xt)
  l2 = DenoisingLoss()(SCHEDULE, quiet, x0, t, noise)
  l1 = DenoisingLoss(norm="l1")(SCHEDULE, quiet, x0, t, noise)
  assert l2.shape == (64,)
  np.testing.assert_allclose(l2.mean(), 1.0, atol=0.01)
  np.testing.assert_allclose(l1.mean(), np.sqrt(2 / np.pi), atol=0.01)


def test_times_cover_the_schedule_evenly():
  t = np.asarray(draw_times(jax.random.key(4), Schedule(steps=10), 100_000))
  values, counts = np.unique(t, return_counts=True)
  np.testing.assert_array_equal(values, np.arange(10))
  assert np.all(np.abs(counts - 10_000) < 500)


def test_guidance_is_the_identity_at_one_and_keeps_the_mixture():
  x0, noise = draw(5)
  xt = q_sample(SCHEDULE, x0, T, noise)
  outputs = draw(6)
  no, yes = (to_pair("eps", SCHEDULE, xt, T, out) for out in outputs)
  same = guide(no, yes, 1.0)
  np.testing.assert_allclose(same.eps, yes.eps, atol=1e-5)
  strong = guide(no, yes, 7.5)
  np.testing.assert_allclose(
    strong.eps, no.eps + 7.5 * (yes.eps - no.eps), atol=1e-4
  )
  middle = jnp.array([2, 3])
  np.testing.assert_allclose(
    q_sample(SCHEDULE, strong.x0[middle], T[middle], strong.eps[middle]),
    xt[middle],
    atol=1e-3,
  )
