"""Autoencoders in files of their own, under diffusers' or their authors' names.

Those with CompVis's names are read by `single_file.detect`.
"""

import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from ldm_jax.errors import WeightsError
from ldm_jax.nn.autoencoder import Autoencoder, ConvStack
from ldm_jax.nn.bottleneck import GaussianBottleneck
from ldm_jax.nn.tiny_autoencoder import TinyAutoencoder
from ldm_jax.pretrained.configs.autoencoder_config import autoencoder_config
from ldm_jax.pretrained.configs.defaults import SCALING_FACTOR
from ldm_jax.pretrained.configs.tiny_autoencoder_config import (
  tiny_autoencoder_config,
)
from ldm_jax.pretrained.networks import ForeignNetwork
from ldm_jax.pretrained.single_network.dc_autoencoder_file import (
  find_dc_autoencoder,
)
from ldm_jax.weights.files import read_tensors
from ldm_jax.weights.naming.parameter_names import modern_names

Tensors = Mapping[str, np.ndarray]

_TINY = "encoder.layers.0.weight"
_TINY_SIDES = ("encoder", "decoder")
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
    module = _kl(tensors)
    config = autoencoder_config(module, scaling_factor=SCALING_FACTOR)
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
  """The module of AutoencoderKL's tensors, with 32 groups."""
  shape = lambda name: _shape(tensors, f"{name}.weight")
  levels, widths = 0, []
  while block := shape(f"encoder.down_blocks.{levels}.resnets.0.conv1"):
    widths.append(block[0])
    levels += 1
  rows = 0
  while shape(f"encoder.down_blocks.0.resnets.{rows}.conv1"):
    rows += 1
  latents, first = shape("post_quant_conv"), widths[0]
  if len(latents) != 4 or any(width % first for width in widths):
    raise WeightsError(
      f"an autoencoder of widths {widths} whose post_quant_conv has shape "
      f"{latents}; give a folder with its config.json"
    )
  names = modern_names(tensors)
  attends = tuple(
    level
    for level in range(levels)
    if f"encoder.down_blocks.{level}.attentions.0.to_q.weight" in names
  )
  has_mid = "encoder.mid_block.attentions.0.to_q.weight" in names
  trunk = ConvStack(
    first, tuple(width // first for width in widths), rows, attends, has_mid
  )
  return Autoencoder(trunk, latents[0], GaussianBottleneck())
