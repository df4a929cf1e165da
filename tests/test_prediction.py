"""Parameterizations, losses and guidance by the identities that define them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.diffusion.guidance import (
  ClassifierFreeGuidance,
  with_classifier_guidance,
)
from ldm_jax.diffusion.loss import DenoisingLoss, sample_times
from ldm_jax.diffusion.prediction import (
  Estimate,
  target,
  to_estimate,
  with_thresholding,
)
from ldm_jax.diffusion.schedule import Schedule, q_sample

SCHEDULE = Schedule()
KINDS = ["eps", "x0", "v", "flow"]
T = jnp.array([0.0, 1.0, 17.5, 400.0, 998.5, 999.0])


def normal_pair(seed=0):
  keys = jax.random.split(jax.random.key(seed))
  return [jax.random.normal(key, (len(T), 5, 4, 3)) for key in keys]


@pytest.mark.parametrize("kind", KINDS)
def test_to_estimate_inverts_target(kind):
  x0, noise = normal_pair()
  xt = q_sample(SCHEDULE, x0, T, noise)
  estimate = to_estimate(
    kind, SCHEDULE.level(T), xt, target(kind, SCHEDULE, x0, T, noise)
  )
  # Dividing by sigma at t = 0, or by the signal at the end, costs digits.
  np.testing.assert_allclose(estimate.x0, x0, atol=2e-5)
  np.testing.assert_allclose(estimate.eps, noise, atol=6e-5)


def test_v_at_zero_terminal_snr_is_minus_x0():
  schedule = Schedule(zero_terminal_snr=True)
  x0, noise = normal_pair()
  last = jnp.full((len(T),), 999.0)
  v = target("v", schedule, x0, last, noise)
  np.testing.assert_allclose(v, -x0, atol=1e-6)
  estimate = to_estimate("v", schedule.level(last), noise, v)
  np.testing.assert_allclose(estimate.x0, x0, atol=1e-6)


@pytest.mark.parametrize("kind", ["x0", "v"])
def test_weighted_losses_agree_across_predictions(kind):
  """min-SNR weights the error of x0, whatever the parameterization."""
  x0, noise = normal_pair(1)
  wrong = normal_pair(2)
  wrong = Estimate(*wrong)

  def loss(prediction):
    # The same wrong x0 in every parameterization; eps follows from it.
    def network(xt, t):
      signal, sigma = SCHEDULE.signal_and_sigma(t)
      shape = (-1, 1, 1, 1)
      eps = (xt - signal.reshape(shape) * wrong.x0) / sigma.reshape(shape)
      return target(prediction, SCHEDULE, wrong.x0, t, eps)

    objective = DenoisingLoss(prediction, min_snr=5.0)
    return objective(SCHEDULE, network, x0, T, noise)

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


def test_the_loss_of_a_zero_network_is_the_variance_of_noise():
  """E|eps|^2 = 1 and E|eps| = sqrt(2 / pi): the loss of a zero-init U-Net."""
  key = jax.random.key(3)
  x0, noise = jax.random.normal(key, (2, 64, 4096))
  t = sample_times(key, SCHEDULE, 64)
  zero = lambda xt, t: jnp.zeros_like(xt)
  l2 = DenoisingLoss()(SCHEDULE, zero, x0, t, noise)
  l1 = DenoisingLoss(norm="l1")(SCHEDULE, zero, x0, t, noise)
  assert l2.shape == (64,)
  np.testing.assert_allclose(l2.mean(), 1.0, atol=0.01)
  np.testing.assert_allclose(l1.mean(), np.sqrt(2 / np.pi), atol=0.01)


def test_times_cover_the_schedule_evenly():
  t = np.asarray(sample_times(jax.random.key(4), Schedule(steps=10), 100_000))
  values, counts = np.unique(t, return_counts=True)
  np.testing.assert_array_equal(values, np.arange(10))
  assert np.all(np.abs(counts - 10_000) < 500)


def test_guidance_is_the_identity_at_one_and_linear():
  unconditional, conditional = normal_pair(6)
  np.testing.assert_allclose(
    ClassifierFreeGuidance(1.0).combine(unconditional, conditional, 0.5),
    conditional,
    atol=1e-6,
  )
  np.testing.assert_allclose(
    ClassifierFreeGuidance(0.0).combine(unconditional, conditional, 0.5),
    unconditional,
    atol=1e-6,
  )
  np.testing.assert_allclose(
    ClassifierFreeGuidance(7.5).combine(unconditional, conditional, 0.5),
    unconditional + 7.5 * (conditional - unconditional),
    atol=1e-4,
  )


def test_rescaled_guidance_has_the_deviation_of_the_conditional_output():
  """Lin et al. 2023, eq. 15, with phi = 1."""
  unconditional, conditional = normal_pair(6)
  deviation = lambda y: np.std(np.asarray(y), axis=(1, 2, 3))
  whole = ClassifierFreeGuidance(7.5, rescale=1.0).combine(
    unconditional, conditional, 0.5
  )
  np.testing.assert_allclose(
    deviation(whole), deviation(conditional), rtol=1e-5
  )
  plain = ClassifierFreeGuidance(7.5).combine(unconditional, conditional, 0.5)
  half = ClassifierFreeGuidance(7.5, rescale=0.5).combine(
    unconditional, conditional, 0.5
  )
  np.testing.assert_allclose(half, (plain + whole) / 2, atol=1e-5)


def test_guidance_outside_its_interval_is_the_conditional_model():
  unconditional, conditional = normal_pair(6)
  guidance = ClassifierFreeGuidance(4.0, start=0.2, stop=0.8)
  for fraction, scale in [(0.1, 1.0), (0.2, 4.0), (0.8, 4.0), (0.9, 1.0)]:
    np.testing.assert_allclose(
      guidance.combine(unconditional, conditional, jnp.float32(fraction)),
      ClassifierFreeGuidance(scale).combine(unconditional, conditional, 0.5),
      atol=1e-5,
    )


@pytest.mark.parametrize(
  "wrong",
  [
    ClassifierFreeGuidance(float("nan")),
    ClassifierFreeGuidance(2, 1.5),
    ClassifierFreeGuidance(2, 0, 0.8, 0.2),
  ],
)
def test_guidance_out_of_range_is_refused(wrong):
  with pytest.raises(ValueError, match="guidance"):
    wrong.check()


def test_thresholding_keeps_x0_in_range_and_x_t_unchanged():
  """Saharia et al. 2022, 2.3: clip to the quantile s, then divide by s."""
  xt, x0 = normal_pair(8)
  level = jax.tree.map(lambda x: x[3], SCHEDULE.level(T))
  x0 = 2 * x0
  denoise = lambda xt, level: Estimate(x0, xt)
  for most in (1.0, 1.5, 100.0):
    found, eps = with_thresholding(denoise, 0.9, most)(xt, level)
    each = np.abs(np.asarray(x0)).reshape(len(x0), -1)
    size = np.clip(np.quantile(each, 0.9, axis=1), 1, most).reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(
      found, np.clip(x0, -size, size) / size, atol=1e-5
    )
    np.testing.assert_allclose(
      level.signal * found + level.sigma * eps, xt, atol=1e-5
    )


def test_a_rectified_flow_is_the_straight_line():
  """x_t, its target and DDIM's step, all divided by the line's deviation."""
  schedule = Schedule("rectified_flow", steps=50)
  rng = np.random.default_rng(0)
  x0, eps = rng.standard_normal((2, 3, 4))
  on_device = lambda level: jax.tree.map(jnp.float32, level)
  for index in (0, 10, 48, 49):
    s = (index + 1) / 50
    deviation = np.hypot(1 - s, s)
    level = schedule.level_at(index)
    np.testing.assert_allclose(level.signal, (1 - s) / deviation, atol=1e-12)
    np.testing.assert_allclose(level.sigma, s / deviation, atol=1e-12)
    xt = level.signal * x0 + level.sigma * eps
    velocity = eps - x0
    found = to_estimate(
      "flow", on_device(level), jnp.asarray(xt), jnp.asarray(velocity)
    )
    np.testing.assert_allclose(found.x0, x0, atol=1e-5)
    np.testing.assert_allclose(found.eps, eps, atol=1e-5)
  # Euler from s to r along the line, and DDIM from the one level to the other.
  s, r = 0.8, 0.6
  here, there = schedule.level_at(39), schedule.level_at(29)
  line = (1 - s) * x0 + s * eps
  other = rng.standard_normal((3, 4))  # any output of a network
  euler = (line + (r - s) * other) / np.hypot(1 - r, r)
  xt = line / np.hypot(1 - s, s)
  guess = to_estimate(
    "flow", on_device(here), jnp.asarray(xt), jnp.asarray(other)
  )
  ddim = there.signal * guess.x0 + there.sigma * guess.eps
  np.testing.assert_allclose(ddim, euler, atol=1e-5)


def test_logit_normal_times_are_more_often_in_the_middle():
  """P(t < T / 4) = Phi(ln(1 / 3)) of a logit-normal."""
  key, count = jax.random.key(0), 40_000
  t = sample_times(key, Schedule(), count, "logit_normal")
  assert t.min() >= 0 and t.max() <= 999 and (t == jnp.floor(t)).all()
  np.testing.assert_allclose((t < 250).mean(), 0.1360, atol=0.006)
  np.testing.assert_allclose((t < 500).mean(), 0.5, atol=0.01)


def test_guidance_by_the_exact_classifier_gives_the_conditional_score():
  """Two classes with Gaussian images: guidance by the true p(y | x_t) turns
  the score of the mixture into that of the class."""
  schedule = Schedule()
  means, spread = jnp.array([-1.0, 1.5]), 0.3

  def scores(xt, level):
    variance = (level.signal * spread) ** 2 + level.sigma**2
    return (
      -((xt - level.signal * means) ** 2) / (2 * variance),
      -(xt - level.signal * means) / variance,
    )

  def of(score, xt, level):
    eps = -level.sigma * score
    return Estimate((xt - level.sigma * eps) / level.signal, eps)

  def mixture(xt, level):
    logs, each = jax.vmap(scores, (0, None))(xt, level)
    return of((jax.nn.softmax(logs) * each).sum(1)[:, None], xt, level)

  for time in (5, 300, 900):
    level = schedule.level(jnp.float32(time))
    logits = lambda xt, t, level=level: jax.vmap(scores, (0, None))(xt, level)[
      0
    ]
    xt = jnp.array([[0.3], [-2.0], [1.0]])
    labels = jnp.array([0, 1, 1])
    found = with_classifier_guidance(mixture, logits, labels, 1.0)(xt, level)
    each = jax.vmap(scores, (0, None))(xt, level)[1]
    expected = of(each[jnp.arange(3), labels][:, None], xt, level)
    np.testing.assert_allclose(found.eps, expected.eps, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found.x0, expected.x0, rtol=1e-2, atol=1e-2)
