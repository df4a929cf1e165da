"""FLUX.1-dev on captioned images of 1024 x 1024, from published weights.

Its authors published no data and no recipe, and dev is distilled from a model
that is not released, so this tunes it: give a diffusers folder or a file with
--config.start, and --config.task.lora=LoRA for a LoRA. The scale of guidance is
1 in training, the output without guidance. Times are those of Esser et al.
2024, shifted as dev's own sampler shifts them. 11,901 M parameters; in float32
with Adam's moments and their average they take 190 GB, which fsdp divides.
"""

from base import schnell, tuned

from ldm_jax.diffusion.shift import DynamicShift


def get_config():
  network = schnell().clone(embeds_guidance=True)
  return tuned(network, length=512, shift=DynamicShift())
