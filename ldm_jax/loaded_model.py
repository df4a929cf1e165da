"""A model with everything that sampling from it needs."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ldm_jax.data.text.clip_prompts import ClipPrompts
from ldm_jax.data.text.tokenizers import Tokenizer
from ldm_jax.data.transforms.layout_tokens import LayoutTokens
from ldm_jax.diffusion.samplers import SamplerConfig
from ldm_jax.errors import ConfigError
from ldm_jax.latent_diffusion import LatentDiffusion, Parameters
from ldm_jax.nn.conditioners.clip_embedder import ClipEmbedder


@dataclasses.dataclass(frozen=True)
class LoadedModel:
  """A model read from a run or from published weights.

  Attributes:
    tokenizer: of its prompts; None for a model without a text encoder, and
      for a single file, which holds no tokenizer.
    t5_tokenizer: of its prompts for a `T5Embedder`, or None.
    height, width: default size of its images, in pixels.
    guidance: default scale of classifier-free guidance.
    sampler_config: default sampler.
    scheduler: the scheduler_config.json that it was read of; None for a run.
    unet_channels: input channels of its U-Net; None means those of the
      latents.
    layout: turns bounding boxes into tokens, for a layout-to-image model.
    classes: the names of its labels, in their order; () if they have none.
    warnings: what was missing or guessed when it was read, one line each.
  """

  model: LatentDiffusion
  params: Parameters
  tokenizer: Tokenizer | ClipPrompts | None
  height: int
  width: int
  guidance: float = 3.0
  sampler_config: SamplerConfig = SamplerConfig()
  scheduler: Mapping[str, Any] | None = None
  unet_channels: int | None = None
  layout: LayoutTokens | None = None
  classes: tuple[str, ...] = ()
  warnings: tuple[str, ...] = ()
  t5_tokenizer: Tokenizer | None = None


def skip_last_blocks(loaded: LoadedModel, count: int) -> LoadedModel:
  """The model whose CLIP text encoders leave out `count` more last blocks.

  This is "CLIP skip" of other programs, where 1 leaves out nothing more than
  the model does as trained: `count` is CLIP skip - 1.

  Raises:
    ConfigError: the model has no CLIP text encoder, or fewer blocks.
  """
  conditioners = list(loaded.model.conditioners)
  for i, conditioner in enumerate(conditioners):
    if not isinstance(conditioner, ClipEmbedder):
      continue
    limit = min(
      encoder.depth - skip
      for encoder, skip in zip(
        conditioner.encoders, conditioner.skips, strict=True
      )
    )
    if not 0 <= count < limit:
      raise ConfigError(
        f"{count} blocks of a text encoder cannot be skipped; give 0 to "
        f"{limit - 1} (--clip_skip 1 to {limit})"
      )
    skips = tuple(skip + count for skip in conditioner.skips)
    conditioners[i] = conditioner.clone(skips=skips)
    model = dataclasses.replace(loaded.model, conditioners=tuple(conditioners))
    return dataclasses.replace(loaded, model=model)
  raise ConfigError(
    "this model has no CLIP text encoder; leave clip_skip out (--clip_skip)"
  )
