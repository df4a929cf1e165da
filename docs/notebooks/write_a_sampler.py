# %% [markdown]
# # Write a sampler
#
# A sampler is a generator of rows. Every row evaluates the network at one
# noise level and says what the next sample is made of: `X` the current sample,
# `X0` and `EPS` the prediction, `NOISE` standard normal noise. The rows are
# numbers, computed on the host.

# %%
import jax
import jax.numpy as jnp
import numpy as np

import ldm_jax
from ldm_jax.diffusion import samplers
from ldm_jax.diffusion.prediction import Estimate
from ldm_jax.diffusion.samplers import register_sampler, row
from ldm_jax.diffusion.samplers.sampler_table import EPS, NOISE, X0
from ldm_jax.diffusion.schedule import Schedule


def ddim(noise_levels):
  """x_t = signal x0 + sigma eps, at the next level (Song et al. 2021)."""
  for s, t in noise_levels.steps():
    yield row(s, t, x=t.signal * X0 + t.sigma * EPS)


def churning(noise_levels, fraction=0.5):
  """DDIM that replaces a part of the noise by fresh noise."""
  for s, t in noise_levels.steps():
    std = fraction * t.sigma
    rest = np.sqrt(t.sigma**2 - std**2)
    yield row(s, t, x=t.signal * X0 + rest * EPS + std * NOISE)


register_sampler("notebook_ddim", ddim)
register_sampler("notebook_churning", churning)

# %% [markdown]
# An identity that every sampler must satisfy: a denoiser that knows the image
# gives it back, for any number of steps.

# %%
schedule = Schedule()
image = jax.random.normal(jax.random.key(1), (4, 8, 8, 1))
keys = samplers.image_keys(jax.random.key(0), jnp.arange(4))
noise = samplers.initial_noise(keys, (8, 8, 1))


def oracle(xt, level):
  return Estimate(x0=image, eps=(xt - level.signal * image) / level.sigma)


for name in ("notebook_ddim", "notebook_churning"):
  for steps in (1, 5, 20):
    table = samplers.SamplerConfig(steps, name).plan(schedule).table
    error = abs(samplers.sample(oracle, noise, table, keys) - image).max()
    assert error < 1e-3, (name, steps, error)
print("the oracle's image is found")

# %% [markdown]
# Its order of convergence: x0 of N(m, s^2) has a score in closed form, and so
# has the solution of the differential equation.

# %%
MEAN, STD = 0.7, 0.3


def gaussian(xt, level):
  variance = level.signal**2 * STD**2 + level.sigma**2
  eps = level.sigma / variance * (xt - level.signal * MEAN)
  return Estimate((xt - level.sigma * eps) / level.signal, eps)


start = schedule.level_at(999)
xt = start.signal * MEAN + noise * np.sqrt(
  start.signal**2 * STD**2 + start.sigma**2
)
exact = MEAN + STD * noise
for steps in (8, 16, 32, 64):
  config = samplers.SamplerConfig(steps, "notebook_ddim", "trailing")
  x0 = samplers.sample(gaussian, xt, config.plan(schedule).table, keys)
  print(steps, f"{float(abs(x0 - exact).mean()):.4f}")

# %% [markdown]
# From step count to step count the error falls towards a half: order 1, as of
# DDIM. By its name it is used in requests, with any timestep schedule.

# %%
pipe = ldm_jax.Pipeline.from_pretrained("path/to/model")
result = pipe(prompt="a red fox", steps=4, sampler="notebook_ddim karras")
print(result.metadata[0]["sampler"])
