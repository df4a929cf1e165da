"""The two bottlenecks in the plane: a Gaussian per latent, and a codebook."""

import jax
import jax.numpy as jnp
import numpy as np
import style
from style import plt

from ldm_jax.nn.bottleneck import DiagonalGaussian, VectorQuantizer

POINTS = np.array([[-0.9, 0.5], [0.2, 0.9], [0.8, -0.4], [-0.3, -0.7]])


def show_gaussian(axis):
  """Posteriors of four latents, 200 samples of each."""
  for i, point in enumerate(POINTS):
    mean = jnp.asarray(point, jnp.float32).reshape(1, 1, 1, 2)
    posterior = DiagonalGaussian(mean, jnp.full_like(mean, np.log(0.02)))
    noise = jax.random.normal(jax.random.key(i), (200, 1, 1, 2))
    axis.scatter(*posterior.sample(noise).reshape(-1, 2).T, s=2)
    axis.plot(*point, "k+")
  axis.set_title("KL: mean and deviation of every latent")


def show_codebook(axis):
  """A codebook of 24 vectors: cells, and latents moved to the nearest code."""
  quantizer = VectorQuantizer(codes=24, width=2)
  codes = jax.random.uniform(
    jax.random.key(5), (24, 2), minval=-1.3, maxval=1.3
  )
  params = {"params": {"codebook": codes}}
  nearest = lambda x: quantizer.apply(params, x, method="nearest")
  ticks = np.linspace(-1.5, 1.5, 400, dtype=np.float32)
  plane = np.stack(np.meshgrid(ticks, ticks), axis=-1)[None]
  cells = np.asarray(nearest(jnp.asarray(plane)))[0]
  _, numbers = np.unique(cells.reshape(-1, 2), axis=0, return_inverse=True)
  image = numbers.reshape(400, 400) % 7
  axis.imshow(
    image,
    extent=(-1.5, 1.5, -1.5, 1.5),
    origin="lower",
    cmap="Pastel1",
    alpha=0.6,
  )
  axis.plot(*codes.T, "k.", ms=4)
  moved = nearest(jnp.asarray(POINTS, jnp.float32).reshape(1, 2, 2, 2))
  for start, end in zip(POINTS, np.asarray(moved).reshape(-1, 2), strict=True):
    axis.annotate("", end, start, arrowprops={"arrowstyle": "->"})
    axis.plot(*start, "k+")
  axis.set_title("VQ: the nearest vector of a codebook")


def main() -> None:
  """The Gaussian to the left, the codebook to the right."""
  figure, axes = plt.subplots(1, 2, figsize=(7, 3.4))
  show_gaussian(axes[0])
  show_codebook(axes[1])
  for axis in axes:
    axis.set(aspect="equal", xlim=(-1.5, 1.5), ylim=(-1.5, 1.5))
    axis.set(xticks=[], yticks=[])
  figure.tight_layout()
  style.save(figure, "bottleneck")


if __name__ == "__main__":
  main()
