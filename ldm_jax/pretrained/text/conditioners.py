"""How each family uses its text encoders: its conditioners."""

from typing import Any

from ldm_jax.data.text.clip_prompts import ClipPrompts
from ldm_jax.data.text.tokenizers import Tokenizer
from ldm_jax.errors import ConfigError
from ldm_jax.nn.conditioners.clip_embedder import ClipEmbedder
from ldm_jax.nn.conditioners.conditioner import Conditioner
from ldm_jax.nn.conditioners.embedders import (
  ClassEmbedder,
  SizeEmbedder,
  TextEmbedder,
)
from ldm_jax.nn.encoders.clip_text import ClipText
from ldm_jax.nn.encoders.t5 import T5Encoder
from ldm_jax.pretrained.components import Components
from ldm_jax.pretrained.configs import unet_reader
from ldm_jax.pretrained.dit.sampling_defaults import denoiser_inputs
from ldm_jax.pretrained.networks import Module
from ldm_jax.pretrained.text.families import (
  TextEncoders,
  flux_conditioners,
  sd3_conditioners,
)
from ldm_jax.pretrained.text.prompt_tokens import (
  T5_FAMILIES,
  paddings,
  t5_length,
  with_special_tokens,
)

_BERT_EMPTY = (101, 102)  # [CLS] [SEP] of bert-base-uncased


def unet_inputs(components: Components) -> unet_reader.Inputs:
  """What the model's denoiser reads."""
  unet = components.networks["unet"]
  return denoiser_inputs(unet.config, unet.kind)


def conditioners_of(
  components: Components,
  networks: dict[str, tuple[Module, Any]],
  tokenizer: Tokenizer | ClipPrompts | None,
  t5_tokenizer: Tokenizer | None = None,
) -> list[Conditioner]:
  """The conditioners of the model's family.

  Raises:
    ConfigError: the text encoders are not those of a known family.
  """
  modules = {name: module for name, (module, _) in networks.items()}
  if not modules:
    return []
  if components.networks["unet"].kind in T5_FAMILIES:
    return _with_t5(components, networks, tokenizer, t5_tokenizer)
  first = next(iter(modules.values()))
  if isinstance(first, ClassEmbedder):
    return [first]
  if not isinstance(first, ClipText):
    text = {"empty": _BERT_EMPTY, "padding": 0}
    return [TextEmbedder(first, **text)]
  encoders = tuple(modules.values())
  embedder = ClipEmbedder(
    encoders, (0,) * len(encoders), paddings(components, tokenizer)
  )
  embedder = with_special_tokens(embedder, tokenizer)
  inputs = unet_inputs(components)
  if inputs.sinusoids is None:
    if len(encoders) > 1:
      raise ConfigError("two text encoders, but a U-Net without a vector")
    return [embedder]
  return _sdxl_conditioners(components, embedder)


def _with_t5(
  components: Components,
  networks: dict[str, tuple[Module, Any]],
  tokenizer: Tokenizer | ClipPrompts | None,
  t5_tokenizer: Tokenizer | None,
) -> list[Conditioner]:
  """The conditioners of SD3 or FLUX."""
  modules = [module for module, _ in networks.values()]
  unet, special = components.networks["unet"], None
  if isinstance(tokenizer, ClipPrompts):
    own = tokenizer.syntaxes[0].tokenizer.backend
    special = own.bos_token_id, own.eos_token_id
  encoders = TextEncoders(
    tuple(each for each in modules if isinstance(each, ClipText)),
    paddings(components, tokenizer),
    next((each for each in modules if isinstance(each, T5Encoder)), None),
    special,
    t5_tokenizer,
  )
  inputs = unet_inputs(components)
  if unet.kind == "mmdit":
    return sd3_conditioners(encoders, inputs.context, inputs.vector)
  length = t5_length(components)
  return flux_conditioners(encoders, inputs.context, inputs.vector, length)


def _sdxl_conditioners(
  components: Components, embedder: ClipEmbedder
) -> list[Conditioner]:
  """SDXL's text embedder and sizes  (Podell et al. 2023, section 2.2).

  Tokens are the states before the last block and norm; the vector is the last
  encoder's.
  """
  inputs, encoders = unet_inputs(components), embedder.encoders
  pooled = encoders[-1].projection
  count = (inputs.vector - (pooled or 0)) // inputs.sinusoids
  needed = "text_encoder" if pooled else "text_encoder_2"
  widths = sum(encoder.width for encoder in encoders)
  if pooled is None or inputs.context != widths:
    raise ConfigError(
      f"a U-Net that reads {inputs.context} features of text, but "
      f"{' and '.join(n for n in components.networks if 'text' in n)} of "
      f"{widths}; give {needed} with text_encoder=[FOLDER] (--text_encoder)"
    )
  is_zeros = components.index.get(
    "force_zeros_for_empty_prompt", len(encoders) > 1
  )
  if count not in (5, 6):
    raise ConfigError(
      f"a vector of {inputs.vector} features is not a pooled text of {pooled} "
      f"and 5 or 6 numbers of {inputs.sinusoids}"
    )
  embedder = embedder.clone(
    skips=(1,) * len(encoders),
    is_normed=False,
    is_pooled=True,
    null="zeros" if is_zeros else "empty",
  )
  ends_with = "target" if count == 6 else "score"
  return [embedder, SizeEmbedder(ends_with, inputs.sinusoids)]
