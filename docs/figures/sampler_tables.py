"""Samplers as tables: coefficients of three, and errors over evaluations.

The error is the median distance to Heun's method with 400 steps from the same
noise, for the perfect denoiser of a mixture of Gaussians.
"""

import jax
import jax.numpy as jnp
import mixture
import numpy as np
import style
from style import plt

from ldm_jax.diffusion import samplers
from ldm_jax.diffusion.schedule import Schedule

NAMES = ("ddim", "heun", "dpmpp_2m", "unipc")
STEPS = (4, 8, 16, 32, 64)
SCHEDULE = Schedule()
BASIS = ("x", *(f"s{i}" for i in range(1, 6)), "x0", "eps", "noise")


def final(noise, keys, steps, name):
  """The samples, and the number of evaluations."""
  config = samplers.SamplerConfig(steps, name, "karras")
  plan = config.plan(SCHEDULE)
  x = samplers.sample(
    mixture.denoiser(), noise * plan.init_noise_sigma, plan.table, keys
  )
  return np.asarray(x), int(np.sum(plan.table.is_active))


def show_table(axis, name):
  """The update of x in every row: coefficients over the basis."""
  table = samplers.SamplerConfig(8, name, "trailing").plan(SCHEDULE).table
  rows = np.asarray(table.mix)[np.asarray(table.is_active), 0]
  limit = 1.5
  axis.imshow(rows, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
  axis.set_xticks(range(len(BASIS)), BASIS, fontsize=6)
  axis.set_yticks([])
  axis.set_title(name)
  for i, j in np.argwhere(np.abs(rows) > 5e-3):
    dark = abs(rows[i, j]) > 0.9
    axis.text(
      j,
      i,
      f"{rows[i, j]:.2f}",
      ha="center",
      va="center",
      fontsize=4.5,
      color="white" if dark else style.INK,
    )


def main() -> None:
  """Three tables above the curves of convergence."""
  keys = samplers.image_keys(jax.random.key(0), jnp.arange(256))
  noise = samplers.initial_noise(keys, (2,))
  true, _ = final(noise, keys, 400, "heun")
  figure = plt.figure(figsize=(7.5, 5.4))
  grid = figure.add_gridspec(2, 3, height_ratios=(1, 1.1))
  for column, name in enumerate(("ddim", "heun", "dpmpp_2m")):
    axis = figure.add_subplot(grid[0, column])
    show_table(axis, name)
    if column == 0:
      axis.set_ylabel("rows: noise to image")
  axis = figure.add_subplot(grid[1, :])
  for name in NAMES:
    found = [final(noise, keys, steps, name) for steps in STEPS]
    errors = [np.median(np.linalg.norm(x - true, axis=1)) for x, _ in found]
    axis.loglog([calls for _, calls in found], errors, "o-", ms=3, label=name)
  axis.set(xlabel="evaluations of the network", ylabel="median error")
  axis.set_xticks(STEPS, [str(steps) for steps in STEPS])
  axis.minorticks_off()
  axis.legend()
  figure.tight_layout()
  style.save(figure, "sampler_tables")


if __name__ == "__main__":
  main()
