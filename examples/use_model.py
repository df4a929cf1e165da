"""Samples from a run of my_denoiser.py with a user-defined sampler and
guidance.

  python use_model.py runs/denoiser
"""

import sys

import numpy as np
from my_diffusion.guidance import FadingGuidance
from my_diffusion.metric import colorfulness
from my_diffusion.sampler import fading_ddim

import ldm_jax


def main(run: str, out: str = "samples") -> None:
  """Four red and four blue images."""
  pipe = ldm_jax.Pipeline.from_run(run, trust=("my_diffusion",))
  for color in ((0.8, -0.8, -0.8), (-0.8, -0.8, 0.8)):
    result = pipe(
      num=4,
      steps=10,
      sampler=fading_ddim,
      guidance=FadingGuidance(3.0),
      conditions={"color": np.float32(color)},
    )
    result.save(out)
  images = ldm_jax.EvaluationRequest(out, metrics=(colorfulness,))
  print(ldm_jax.evaluate(images).metrics)


if __name__ == "__main__":
  main(*sys.argv[1:])
