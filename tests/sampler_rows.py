"""A sampler's table followed in float64 numpy, and closed-form denoisers."""

import itertools

import numpy as np

from ldm_jax.diffusion.schedule import Level

MEANS, STD = np.array([-1.5, 0.3, 1.1]), 0.5
WEIGHTS = np.array([0.3, 0.5, 0.2])
LINE = np.linspace(-2.0, 2.0, 41)  # x_T


def follow(table, xt, denoise, noises=None, replace_known=None):
  """The final x of a table from xt: the definition, without jit or chunks."""
  state = np.zeros((6, *xt.shape))
  state[0] = xt
  for i, mix in enumerate(table.mix):
    x0, eps = denoise(state[0], at(table.level, i))
    noise = np.zeros_like(xt) if noises is None else noises[i]
    basis = np.stack([*state, x0, eps, noise])
    state = np.tensordot(mix, basis, 1)
    if replace_known is not None:
      state[0] = replace_known(state[0], at(table.next_level, i))
  return state[0]


def at(level, i):
  """One level of a stack of them."""
  return Level(level.time[i], level.signal[i], level.sigma[i])


def mixture_eps(x, ratio):
  """Noise expected in x = x0 + ratio eps, x0 of a mixture of Gaussians."""
  variance = STD**2 + ratio**2
  logits = np.log(WEIGHTS) - (x[..., None] - MEANS) ** 2 / (2 * variance)
  weight = np.exp(logits - logits.max(-1, keepdims=True))
  weight /= weight.sum(-1, keepdims=True)
  return ratio * (weight * (x[..., None] - MEANS)).sum(-1) / variance


def mixture(xt, level):
  """The exact (x0, eps) of the mixture."""
  eps = mixture_eps(xt / level.signal, level.ratio)
  return (xt - level.sigma * eps) / level.signal, eps


def solve(x, high, low, count=20000):
  """dx / d ratio = eps by classical Runge-Kutta in ln ratio."""
  logs = np.linspace(np.log(high), np.log(low), count + 1)
  f = lambda x, s: np.exp(s) * mixture_eps(x, np.exp(s))
  for s, r in itertools.pairwise(logs):
    h = r - s
    a = f(x, s)
    b = f(x + h / 2 * a, s + h / 2)
    c = f(x + h / 2 * b, s + h / 2)
    d = f(x + h * c, r)
    x = x + h / 6 * (a + 2 * b + 2 * c + d)
  return x
