"""Noise schedules: signal-to-noise ratios over time, and noised images."""

import numpy as np
import style
from style import plt

from ldm_jax.data.glyphs.source import Glyphs
from ldm_jax.diffusion.schedule import Schedule

SCHEDULES = {
  "Stable Diffusion": Schedule(),
  "LDM, faces": Schedule(start=0.0015, end=0.0195),
  "cosine": Schedule("cosine"),
  "Stable Diffusion, zero terminal SNR": Schedule(zero_terminal_snr=True),
  "rectified flow": Schedule("rectified_flow"),
}
TIMES = (0, 250, 500, 750, 999)


def main() -> None:
  """The curves above; below, an image at five times of two schedules."""
  figure = plt.figure(figsize=(7.5, 5.6))
  grid = figure.add_gridspec(3, 5, height_ratios=(1.5, 1, 1), hspace=0.5)
  axis = figure.add_subplot(grid[0, :])
  for name, schedule in SCHEDULES.items():
    ab = schedule.alpha_bar
    with np.errstate(divide="ignore"):
      axis.plot(10 * np.log10(ab / (1 - ab)), label=name)
  axis.set(ylim=(-45, 40), ylabel="signal-to-noise, dB")
  axis.set_xlabel("time t", loc="right", labelpad=2)
  axis.legend(ncols=2, fontsize=8)
  x0 = Glyphs(level=0)[3]["image"] / 127.5 - 1
  noise = np.random.default_rng(0).standard_normal(x0.shape)
  for row, name in enumerate(("Stable Diffusion", "rectified flow"), 1):
    for column, t in enumerate(TIMES):
      level = SCHEDULES[name].level_at(t)
      axis = figure.add_subplot(grid[row, column])
      xt = level.signal * x0 + level.sigma * noise
      axis.imshow(np.clip((xt + 1) / 2, 0, 1))
      axis.set(xticks=[], yticks=[])
      if row == 1:
        axis.set_title(f"t = {t}")
      if column == 0:
        axis.set_ylabel(name, fontsize=8)
  style.save(figure, "schedules")


if __name__ == "__main__":
  main()
