"""A model opened, from a run or from foreign files: all that drawing needs."""

import dataclasses

from ldm_jax.data.text.clip_prompts import ClipPrompts
from ldm_jax.data.text.tokenizers import Tokenizer
from ldm_jax.data.transforms.layout_tokens import LayoutTokens
from ldm_jax.diffusion.samplers import SamplerConfig
from ldm_jax.errors import ConfigError
from ldm_jax.latent_diffusion import LatentDiffusion, Parameters
from ldm_jax.nn.conditioners.clip_embedder import ClipEmbedder


@dataclasses.dataclass(frozen=True)
class LoadedModel:
  """A model with everything beside its parameters that drawing asks for.

  Attributes:
    tokenizer: of its texts, if it reads any.
    height, width: of its images unless others are asked for, in pixels.
    guidance: scale unless another is asked for.
    recipe: the sampler it is used with unless another is asked for.
    inputs: channels its U-Net takes; None where they are the latents'.
    layout: how boxes become ids, if it reads layouts.
    notices: lines for the user.
  """

  model: LatentDiffusion
  params: Parameters
  tokenizer: Tokenizer | ClipPrompts | None
  height: int
  width: int
  guidance: float = 3.0
  sampler_config: SamplerConfig = SamplerConfig()
  inputs: int | None = None
  layout: LayoutTokens | None = None
  notices: tuple[str, ...] = ()


def skip_blocks(opened: LoadedModel, count: int) -> LoadedModel:
  """The model whose towers of CLIP leave out `count` more of their last blocks.

  Raises:
    ConfigError: it has no such towers, or they have no more to leave out.
  """
  parts = list(opened.model.conditioners)
  for i, part in enumerate(parts):
    if not isinstance(part, ClipEmbedder):
      continue
    most = min(
      encoder.depth - skip
      for encoder, skip in zip(part.encoders, part.skips, strict=True)
    )
    if not 0 <= count < most:
      raise ConfigError(
        f"{count} blocks of a text encoder cannot be skipped; give 0 to "
        f"{most - 1} (--clip_skip 1 to {most})"
      )
    parts[i] = part.clone(skips=tuple(skip + count for skip in part.skips))
    model = dataclasses.replace(opened.model, conditioners=tuple(parts))
    return dataclasses.replace(opened, model=model)
  raise ConfigError("this model has no tower of CLIP; leave --clip_skip out")
