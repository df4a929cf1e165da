"""Autoencoders in files of their own, under diffusers' or their authors' names.

Those with CompVis's names are read by `single_file.detect`.
"""

import dataclasses
import math
import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from ldm_jax.errors import WeightsError
from ldm_jax.nn.autoencoder import Autoencoder, ConvStack
from ldm_jax.nn.bottleneck import GaussianBottleneck
from ldm_jax.nn.inpainting_decoder import InpaintingAutoencoder
from ldm_jax.nn.latent_normalization import BatchStatistics
from ldm_jax.nn.tiny_autoencoder import TinyAutoencoder
from ldm_jax.pretrained.configs.autoencoder_config import autoencoder_config
from ldm_jax.pretrained.configs.latent_statistics import published_statistics
from ldm_jax.pretrained.configs.tiny_autoencoder_config import (
  tiny_autoencoder_config,
)
from ldm_jax.pretrained.networks import ForeignNetwork
from ldm_jax.pretrained.single_network import batch_statistics
from ldm_jax.pretrained.single_network.dc_autoencoder_file import (
  find_dc_autoencoder,
)
from ldm_jax.weights.files import read_tensors
from ldm_jax.weights.naming.parameter_names import modern_names

Tensors = Mapping[str, np.ndarray]

_TINY = "encoder.layers.0.weight"
_TINY_SIDES = ("encoder", "decoder")
GROUPS = 32  # of the norms of all published autoencoders
_KL = "encoder.down_blocks.0.resnets.0.conv1.weight"


def find_autoencoder(path: str, tensors: Tensors) -> ForeignNetwork | None:
  """The autoencoder of a file; None if it holds none of these kinds.

  TAESD's encoder and decoder may be two files, of names that differ in this
  word alone; either of them may be `path`.

  Raises:
    WeightsError: TAESD's other half is missing, a tensor has a shape that no
      such network has, or a DC-AE is of no published layout.
  """
  renamed = _from_halves(path, tensors)
  tensors = tensors if renamed is None else renamed
  if _TINY in tensors:
    config = tiny_autoencoder_config(_tiny(tensors))
    return ForeignNetwork(config, tensors, "tiny_autoencoder", "diffusers")
  if _KL in tensors and "quantize.embedding.weight" not in tensors:
    module, scale, _ = published_statistics(_kl(tensors))
    config = autoencoder_config(module, scaling_factor=scale)
    return ForeignNetwork(config, tensors, "autoencoder", "diffusers")
  return find_dc_autoencoder(tensors)


def _from_halves(path: str, tensors: Tensors) -> dict[str, Any] | None:
  """TAESD's own two halves under diffusers' names; None if it is not TAESD.

  TAESD's decoder begins with a layer without parameters that diffusers' lacks.
  """
  own = {side: _half(tensors, f"taesd_{side}.") for side in _TINY_SIDES}
  if not any(own.values()):
    is_encoder = _shape(tensors, "0.weight")[1:2] == (3,)
    is_decoder = "1.weight" in tensors and "3.conv.0.weight" in tensors
    if not is_encoder and not is_decoder:
      return None
    own["encoder" if is_encoder else "decoder"] = dict(tensors)
  for side, other in (_TINY_SIDES, _TINY_SIDES[::-1]):
    if not own[side]:
      own[side] = _other_half(path, other, side)
  layers = {
    f"encoder.layers.{name}": own["encoder"][name] for name in own["encoder"]
  }
  for name, tensor in own["decoder"].items():
    number, _, rest = name.partition(".")
    if not number.isdecimal():
      raise WeightsError(f"{path}: {name!r} is no layer of TAESD's decoder")
    layers[f"decoder.layers.{int(number) - 1}.{rest}"] = tensor
  return layers


def _shape(tensors: Tensors, name: str) -> tuple[int, ...]:
  """The shape of a tensor; () without one of that name."""
  return np.shape(tensors[name]) if name in tensors else ()


def _half(tensors: Tensors, prefix: str) -> dict[str, Any]:
  return {
    name.removeprefix(prefix): tensors[name]
    for name in tensors
    if name.startswith(prefix)
  }


def _other_half(path: str, found: str, needed: str) -> dict[str, Any]:
  """The tensors of the file next to this one whose name has the other word."""
  folder, name = os.path.split(path)
  other = os.path.join(folder, name.replace(found, needed))
  if other == path or not os.path.isfile(other):
    raise WeightsError(
      f"{path} is the {found} of TAESD alone; its {needed} is needed next to "
      f"it, as in taesd_{found}.safetensors and taesd_{needed}.safetensors"
    )
  tensors = read_tensors(other)
  return _half(tensors, f"taesd_{needed}.") or dict(tensors)


def _tiny(tensors: Tensors) -> TinyAutoencoder:
  """The module of AutoencoderTiny's tensors."""
  blocks = {}
  for side in _TINY_SIDES:
    pattern = re.compile(rf"{side}\.layers\.(\d+)\.(conv\.0\.)?weight")
    found = [m for name in tensors if (m := pattern.fullmatch(name))]
    is_block = {int(m[1]): m[2] is not None for m in found}
    # A convolution ends every level; the encoder's first one is before it.
    counts, count = [], 0
    for layer in sorted(is_block):
      if is_block[layer]:
        count += 1
      elif layer:
        counts.append(count)
        count = 0
    blocks[side] = tuple(counts)
  channels, *_ = np.shape(tensors[_TINY])
  shape = _shape(tensors, "decoder.layers.0.weight")
  if len(shape) != 4 or not all(map(len, blocks.values())):
    raise WeightsError("AutoencoderTiny needs an encoder and a decoder")
  return TinyAutoencoder(
    channels, shape[1], blocks["encoder"], blocks["decoder"]
  )


def _kl(tensors: Tensors) -> Autoencoder:
  """The module of the tensors of an AutoencoderKL, of FLUX.2's or of an
  AsymmetricAutoencoderKL; its norms have 32 groups, or a divisor of 32."""
  names = modern_names(tensors)
  encoder, decoder = (
    _stack(names, side, word)
    for side, word in (("encoder", "down"), ("decoder", "up"))
  )
  groups = math.gcd(encoder.groups, decoder.groups)
  encoder, decoder = (
    dataclasses.replace(stack, groups=groups) for stack in (encoder, decoder)
  )
  latents = _shape(tensors, "decoder.conv_in.weight")
  if len(latents) != 4:
    raise WeightsError(
      f"an autoencoder whose decoder.conv_in has shape {latents}; needed: 4 "
      "numbers"
    )
  options = {
    "decoder_trunk": None if decoder == encoder else decoder,
    "has_quant_conv": "quant_conv.weight" in tensors,
    "has_post_quant_conv": "post_quant_conv.weight" in tensors,
  }
  if batch_statistics.MEAN in tensors:
    options["normalization"] = BatchStatistics()
  is_asymmetric = "decoder.condition_encoder.layers.0.weight" in tensors
  kind = InpaintingAutoencoder if is_asymmetric else Autoencoder
  return kind(encoder, latents[1], GaussianBottleneck(), **options)


def _stack(tensors: Tensors, side: str, word: str) -> ConvStack:
  """The stack of the encoder (word "down") or the decoder ("up").

  Raises:
    WeightsError: a level is no multiple of the first.
  """
  shape = lambda name: _shape(tensors, f"{side}.{name}.weight")
  levels = 0
  while shape(f"{word}_blocks.{levels}.resnets.0.conv1"):
    levels += 1
  # Decoders number their levels from the coarsest.
  order = range(levels) if word == "down" else reversed(range(levels))
  places = [f"{word}_blocks.{n}" for n in order]
  widths = [shape(f"{place}.resnets.0.conv1")[0] for place in places]
  rows = 0
  while shape(f"{word}_blocks.0.resnets.{rows}.conv1"):
    rows += 1
  first = widths[0] if widths else 1
  if not widths or any(width % first for width in widths):
    raise WeightsError(
      f"an autoencoder whose {side} has widths {widths}, which are no "
      "multiples of the first; give a folder with its config.json"
    )
  attends = tuple(
    level
    for level, place in enumerate(places)
    if shape(f"{place}.attentions.0.to_q")
  )
  return ConvStack(
    first,
    tuple(width // first for width in widths),
    rows if word == "down" else rows - 1,
    attends,
    bool(shape("mid_block.attentions.0.to_q")),
    groups=math.gcd(GROUPS, *widths),
  )
