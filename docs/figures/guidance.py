"""Classifier-free guidance on a mixture of Gaussians whose scores are known.

The condition is one class of two modes of eight; guidance extrapolates from the
unconditional prediction. Every panel has the same 600 initial noises.
"""

import jax
import jax.numpy as jnp
import mixture
import style
from style import plt

from ldm_jax.diffusion import samplers
from ldm_jax.diffusion.guidance import ClassifierFreeGuidance
from ldm_jax.diffusion.schedule import Schedule

SCALES = (0.0, 1.0, 2.0, 5.0)
CLASS = mixture.MEANS[:2]


def guided(scale):
  """The denoiser with guidance of this scale."""
  guidance = ClassifierFreeGuidance(scale)

  def denoise(xt, level):
    away = mixture.expected_noise(xt, level, mixture.MEANS)
    towards = mixture.expected_noise(xt, level, CLASS)
    return mixture.estimate(xt, level, guidance.combine(away, towards, 0.5))

  return denoise


def main() -> None:
  """Samples at four scales."""
  plan = samplers.SamplerConfig(40, "dpmpp_2m").plan(Schedule())
  keys = samplers.image_keys(jax.random.key(0), jnp.arange(600))
  noise = samplers.initial_noise(keys, (2,))
  figure, axes = plt.subplots(
    1, 4, figsize=(7.5, 2.2), sharex=True, sharey=True
  )
  for scale, axis in zip(SCALES, axes, strict=True):
    x = samplers.sample(guided(scale), noise, plan.table, keys)
    axis.scatter(*mixture.MEANS.T, s=260, color="#dddddd", linewidths=0)
    axis.scatter(*CLASS.T, s=260, color="#c9cff0", linewidths=0)
    axis.scatter(*x.T, s=1.5)
    axis.set(aspect="equal", xticks=[], yticks=[], xlim=(-1.5, 1.9))
    axis.set_ylim(-1.5, 1.9)
    names = {0.0: "0: unconditional", 1.0: "1: conditional"}
    axis.set_title(f"guidance {names.get(scale, f'{scale:g}')}")
  figure.tight_layout()
  style.save(figure, "guidance")


if __name__ == "__main__":
  main()
