"""The config.json of transformers' T5EncoderModel, to and from `T5Encoder`."""

from collections.abc import Mapping
from typing import Any

from ldm_jax.errors import ConfigError, WeightsError
from ldm_jax.nn.encoders.t5 import T5Encoder
from ldm_jax.pretrained.configs.defaults import ENCODER
from ldm_jax.pretrained.configs.strict_config import (
  Config,
  Schema,
  read,
  refusal,
)

T5 = Schema(
  "T5EncoderModel",
  defaults={
    "vocab_size": 32128,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 2048,
    "num_layers": 6,
    "num_heads": 8,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
    "feed_forward_proj": "relu",
  },
  demands=ENCODER
  | {
    "model_type": ("t5",),
    "is_encoder_decoder": (True, False, None),
    "is_gated_act": (True,),
    "dense_act_fn": ("gelu_new",),
  },
  passive=None,
)
KINDS = (T5.kind, "T5ForConditionalGeneration")
_FIRST = "encoder.block.0.layer.0.SelfAttention."
_BIAS, _QUERY = f"{_FIRST}relative_attention_bias.weight", f"{_FIRST}q.weight"
_GATE = "encoder.block.0.layer.1.DenseReluDense.wi_0.weight"
TOKENS, TIED = "shared.weight", "encoder.embed_tokens.weight"


def t5(config: Config) -> T5Encoder:
  """The encoder of a transformers T5Config of version 1.1.

  Raises:
    ConfigError: a key asks for something that `T5Encoder` does not support,
      such as the feed-forward without a gate of version 1.0.
  """
  values = read(config, T5)
  if values["feed_forward_proj"] != "gated-gelu":
    needed = "'gated-gelu', of T5 version 1.1"
    found = values["feed_forward_proj"]
    raise refusal(T5.kind, "feed_forward_proj", found, needed)
  try:
    return T5Encoder(
      values["vocab_size"],
      values["d_model"],
      values["num_layers"],
      values["num_heads"],
      values["d_kv"],
      values["d_ff"],
      values["relative_attention_num_buckets"],
      values["relative_attention_max_distance"],
      values["layer_norm_epsilon"],
    )
  except ValueError as error:
    raise ConfigError(f"{T5.kind}: {error}") from error


def t5_config(encoder: T5Encoder) -> dict[str, Any]:
  """The config.json of the same encoder in transformers."""
  return {
    "architectures": [T5.kind],
    "d_ff": encoder.hidden,
    "d_kv": encoder.head_width,
    "d_model": encoder.width,
    "decoder_start_token_id": 0,
    "dense_act_fn": "gelu_new",
    "eos_token_id": 1,
    "feed_forward_proj": "gated-gelu",
    "is_encoder_decoder": True,
    "is_gated_act": True,
    "layer_norm_epsilon": encoder.epsilon,
    "model_type": "t5",
    "num_decoder_layers": encoder.depth,
    "num_heads": encoder.heads,
    "num_layers": encoder.depth,
    "pad_token_id": 0,
    "relative_attention_max_distance": encoder.distance,
    "relative_attention_num_buckets": encoder.buckets,
    "tie_word_embeddings": False,
    "vocab_size": encoder.vocabulary,
  }


def is_t5(names: Mapping[str, Any]) -> bool:
  """Whether tensors of these names are T5's encoder, of any version."""
  return _BIAS in names


def config_of_shapes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
  """The config.json of an encoder with tensors of these shapes.

  The distance at which the last class begins and the norms' epsilon are those
  of all published ones.

  Raises:
    WeightsError: they are not those of T5 version 1.1.
  """
  tokens = shapes.get(TOKENS, shapes.get(TIED, ()))
  named = [shapes.get(name, ()) for name in (_BIAS, _QUERY, _GATE)]
  if any(len(shape) != 2 or 0 in shape for shape in (tokens, *named)):
    names = ", ".join((TOKENS, _BIAS, _QUERY, _GATE))
    raise WeightsError(
      f"{names} of shapes {tokens}, {', '.join(map(str, named))} are not those "
      "of T5 version 1.1, whose feed-forward has a gate"
    )
  (buckets, heads), (inner, _), (hidden, _) = named
  depth = 0
  while f"encoder.block.{depth}.layer.0.SelfAttention.q.weight" in shapes:
    depth += 1
  if inner % heads:
    raise WeightsError(
      f"{_QUERY} has {inner} rows, which do not divide into the {heads} heads "
      f"of {_BIAS}"
    )
  encoder = T5Encoder(
    tokens[0], tokens[1], depth, heads, inner // heads, hidden
  )
  # As a config, so that unfit numbers are refused where it is read.
  return t5_config(encoder) | {"relative_attention_num_buckets": buckets}
