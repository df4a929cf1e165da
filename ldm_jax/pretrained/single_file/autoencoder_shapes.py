"""Reads an autoencoder from the names and shapes of a single file's tensors."""

import dataclasses
import math

from ldm_jax.errors import WeightsError
from ldm_jax.nn.autoencoder import Autoencoder, ConvStack
from ldm_jax.nn.bottleneck import GaussianBottleneck, VectorQuantizer
from ldm_jax.nn.latent_normalization import BatchStatistics
from ldm_jax.pretrained.single_file.tensor_shapes import (
  GROUPS,
  Shapes,
  multipliers,
)


def read_autoencoder(shapes: Shapes) -> Autoencoder:
  """A first stage.

  Raises:
    WeightsError: it is not laid out as `Autoencoder`.
  """
  channels, colors, *_ = shapes["encoder.conv_in.weight"]
  encoder = _conv_stack(shapes, "encoder", "down", channels)
  decoder = _conv_stack(shapes, "decoder", "up", channels)
  groups = math.gcd(encoder.groups, decoder.groups)
  encoder, decoder = (
    dataclasses.replace(stack, groups=groups) for stack in (encoder, decoder)
  )
  width = shapes["decoder.conv_in.weight"][1]
  has_quant = "post_quant_conv.weight" in shapes
  inner = shapes["post_quant_conv.weight"][0] if has_quant else width
  if (colors, inner) != (3, width):
    raise WeightsError(
      f"an autoencoder of {colors} colours whose post_quant_conv makes "
      f"{inner} channels of {width}; expected 3 colours and as many channels"
    )
  bottleneck, normalization = GaussianBottleneck(), None
  if (codes := "quantize.embedding.weight") in shapes:
    bottleneck = VectorQuantizer(*shapes[codes][:2])
  if "bn.running_mean" in shapes:
    normalization = BatchStatistics()
  return Autoencoder(
    encoder,
    width,
    bottleneck,
    decoder_trunk=None if decoder == encoder else decoder,
    has_quant_conv="quant_conv.weight" in shapes,
    has_post_quant_conv=has_quant,
    normalization=normalization,
  )


def _conv_stack(
  shapes: Shapes, side: str, word: str, channels: int
) -> ConvStack:
  """The stack of an encoder (word "down") or a decoder ("up").

  Args:
    channels: of the encoder's first convolution; a wider decoder may have
      others.
  """
  levels = range(shapes.count(f"{side}.{word}"))
  widths = [
    shapes[f"{side}.{word}.{level}.block.0.conv2.weight"][0] for level in levels
  ]
  blocks = shapes.count(f"{side}.{word}.0.block")
  if word == "up" and any(width % channels for width in widths):
    channels = widths[0]
  return ConvStack(
    channels,
    multipliers(widths, channels),
    blocks if word == "down" else blocks - 1,
    tuple(n for n in levels if f"{side}.{word}.{n}.attn.0" in shapes),
    f"{side}.mid.attn_1" in shapes,
    groups=math.gcd(GROUPS, *widths),
  )
