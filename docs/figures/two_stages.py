"""The two stages: an image, its latents, noised latents, the reconstruction.

Needs a run of stage one, by default that of `make quickstart`:

  python docs/figures/two_stages.py docs/figures runs/glyphs_autoencoder
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import style
from style import plt

from ldm_jax.data.glyphs.source import Glyphs
from ldm_jax.diffusion.schedule import Schedule
from ldm_jax.run import Run
from ldm_jax.runtime.devices.sharding import MeshShape

EXAMPLES = (3, 17, 24)
TIMES = (0, 300, 600)
FLOW = Schedule("rectified_flow")


def show(axis, image, title=""):
  """An image without axes; `image` is [h w] or [h w 3]."""
  axis.imshow(image, cmap="viridis")
  axis.set_axis_off()
  axis.set_title(title, fontsize=8)


def grey(latents):
  """The eight channels of latents [h w 8] as one image [2 h, 4 w]."""
  h, w, _ = latents.shape
  tiles = latents.transpose(2, 0, 1).reshape(2, 4, h, w)
  return tiles.transpose(0, 2, 1, 3).reshape(2 * h, 4 * w)


def main() -> None:
  """One row per image."""
  folder = sys.argv[2] if len(sys.argv) > 2 else "runs/glyphs_autoencoder"
  run = Run.open(folder)
  autoencoder = run.experiment.task.autoencoder
  params = run.trained(MeshShape().build())
  glyphs = Glyphs(level=0, split="validation")
  images = np.stack([glyphs[i]["image"] for i in EXAMPLES])
  pixels = jnp.asarray(images, jnp.float32) / 127.5 - 1
  apply = jax.jit(autoencoder.apply, static_argnames="method")
  latents = np.asarray(apply(params, pixels, method="encode").mode())
  latents = latents / latents.std()
  scale = np.asarray(apply(params, pixels, method="encode").mode()).std()
  noise = np.random.default_rng(0).standard_normal(latents.shape)
  decode = lambda z: apply(params, jnp.float32(z * scale), method="decode")
  figure, axes = plt.subplots(len(EXAMPLES), 6, figsize=(7.5, 3.2))
  for row, image in enumerate(images):
    titles = ["image", "latents", *(f"noised, t = {t}" for t in TIMES[1:])]
    titles += ["decoded latents", "decoded, t = 300"]
    noised = [
      FLOW.level_at(t).signal * latents + FLOW.level_at(t).sigma * noise
      for t in TIMES
    ]
    shown = [image, grey(latents[row]), *(grey(z[row]) for z in noised[1:])]
    for z in (latents, noised[1]):
      pixels = np.asarray(decode(z))[row]
      shown.append(np.clip((pixels + 1) / 2, 0, 1))
    for axis, each, title in zip(axes[row], shown, titles, strict=True):
      show(axis, each, title if row == 0 else "")
  figure.tight_layout()
  style.save(figure, "two_stages")


if __name__ == "__main__":
  main()
