"""FLUX.1-schnell on captioned images of 1024 x 1024, from published weights.

Its authors published no data and no recipe. schnell is distilled to four steps,
which training on the plain flow undoes little by little: tune it for a short
time, or from scratch as mlperf_flux1.py does. Give a diffusers folder or a file
with --config.start. 11,891 M parameters, without an embedding of guidance.
"""

from base import schnell, tuned


def get_config():
  return tuned(schnell(), length=256)
