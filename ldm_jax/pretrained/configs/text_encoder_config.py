"""The config.json of text, image and class encoders, to and from modules."""

from typing import Any, get_args

from ldm_jax.errors import ConfigError
from ldm_jax.nn.conditioners.embedders import ClassEmbedder
from ldm_jax.nn.encoders.clip_text import Activation, ClipText
from ldm_jax.nn.encoders.clip_vision import ClipVision
from ldm_jax.nn.encoders.dinov2 import DinoV2
from ldm_jax.nn.encoders.text_encoder import TextEncoder
from ldm_jax.pretrained.configs.defaults import (
  BERT,
  CLASSES,
  CLIP,
  DINO,
  DINO_WITH_REGISTERS,
  VISION,
)
from ldm_jax.pretrained.configs.strict_config import (
  Config,
  class_name,
  read,
  refusal,
)

_WITH_PROJECTION = "CLIPTextModelWithProjection"
DINOV2 = (DINO.kind, DINO_WITH_REGISTERS.kind)


def clip(config: Config) -> ClipText:
  """The text encoder of a transformers CLIPTextConfig.

  It projects the pooled vector only if `architectures` has the class that does.
  An eos_token_id of 2 is in configs from before transformers used it; the state
  at the largest id is pooled then, as in transformers.

  Raises:
    ConfigError: a key asks for something that `ClipText` does not support.
  """
  values = read(config, CLIP)
  width, hidden = values["hidden_size"], values["intermediate_size"]
  activation, end = values["hidden_act"], values["eos_token_id"]
  if activation not in get_args(Activation):
    raise refusal(CLIP.kind, "hidden_act", activation, get_args(Activation))
  if not isinstance(end, int):
    raise refusal(CLIP.kind, "eos_token_id", end, "one token")
  is_projected = _WITH_PROJECTION in (values["architectures"] or ())
  try:
    return ClipText(
      values["vocab_size"],
      width,
      values["num_hidden_layers"],
      values["num_attention_heads"],
      values["max_position_embeddings"],
      None if hidden == 4 * width else hidden,
      activation,
      values["projection_dim"] if is_projected else None,
      None if end == 2 else end,
    )
  except ValueError as error:
    raise ConfigError(f"{CLIP.kind}: {error}") from error


def clip_config(clip: ClipText) -> dict[str, Any]:
  """The config.json of the same text encoder in transformers."""
  is_projected = clip.projection is not None
  return {
    "architectures": [_WITH_PROJECTION if is_projected else CLIP.kind],
    "bos_token_id": 0,
    "eos_token_id": 2 if clip.end is None else clip.end,
    "hidden_act": clip.activation,
    "hidden_size": clip.width,
    "intermediate_size": clip.hidden or 4 * clip.width,
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": clip.length,
    "model_type": "clip_text_model",
    "num_attention_heads": clip.heads,
    "num_hidden_layers": clip.depth,
    "pad_token_id": 1,
    "projection_dim": clip.projection or clip.width,
    "vocab_size": clip.vocabulary,
  }


def clip_vision(config: Config) -> ClipVision:
  """The image encoder of a transformers CLIPVisionConfig or CLIPConfig.

  Raises:
    ConfigError: a key asks for something that `ClipVision` does not support.
  """
  if "vision_config" in config:  # a CLIPModel: both encoders in one folder
    shared = {"projection_dim": config.get("projection_dim", 512)}
    config = {**config["vision_config"], **shared}
  values = read(config, VISION)
  width, hidden = values["hidden_size"], values["intermediate_size"]
  activation = values["hidden_act"]
  if activation not in get_args(Activation):
    raise refusal(VISION.kind, "hidden_act", activation, get_args(Activation))
  try:
    return ClipVision(
      values["image_size"],
      values["patch_size"],
      width,
      values["num_hidden_layers"],
      values["num_attention_heads"],
      None if hidden == 4 * width else hidden,
      activation,
      values["projection_dim"],
    )
  except ValueError as error:
    raise ConfigError(f"{VISION.kind}: {error}") from error


def dinov2(config: Config) -> DinoV2:
  """The image encoder of transformers' Dinov2Config, or that with registers.

  Raises:
    ConfigError: a key asks for something that `DinoV2` does not support.
  """
  names = [config.get("_class_name"), *(config.get("architectures") or ())]
  has_registers = any("WithRegisters" in str(name) for name in names)
  schema = DINO_WITH_REGISTERS if has_registers else DINO
  values = read(config, schema)
  width, is_gated = values["hidden_size"], values["use_swiglu_ffn"]
  hidden = int(width * values["mlp_ratio"])
  try:
    return DinoV2(
      values["image_size"],
      values["patch_size"],
      width,
      values["num_hidden_layers"],
      values["num_attention_heads"],
      gated_width(hidden) if is_gated else hidden,
      "swiglu" if is_gated else "mlp",
      values.get("num_register_tokens", 0),
      is_antialiased=schema is DINO_WITH_REGISTERS,
    )
  except ValueError as error:
    raise ConfigError(f"{schema.kind}: {error}") from error


def dinov2_config(encoder: DinoV2) -> dict[str, Any]:
  """The config.json of the same image encoder in transformers.

  Raises:
    ConfigError: transformers has no key for a field of it.
  """
  schema = DINO_WITH_REGISTERS if encoder.registers else DINO
  width, hidden = encoder.width, encoder.hidden or 4 * encoder.width
  is_gated = encoder.feed_forward == "swiglu"
  features = 3 * hidden / 2 if is_gated else hidden  # see `gated_width`
  config = {
    "architectures": [schema.kind],
    "attention_probs_dropout_prob": 0.0,
    "drop_path_rate": 0.0,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "hidden_size": width,
    "image_size": encoder.size,
    "layer_norm_eps": 1e-6,
    "mlp_ratio": max(1, round(features / width)),
    "model_type": schema.demands["model_type"][0],
    "num_attention_heads": encoder.heads,
    "num_channels": 3,
    "num_hidden_layers": encoder.depth,
    "patch_size": encoder.patch,
    "qkv_bias": True,
    "use_swiglu_ffn": is_gated,
  }
  if encoder.registers:
    config["num_register_tokens"] = encoder.registers
  read = dinov2(config)
  for name in ("hidden", "is_antialiased", "position_offset"):
    needed = getattr(read, name)
    found = hidden if name == "hidden" else getattr(encoder, name)
    if found != needed:
      raise ConfigError(
        f"{schema.kind} has no key for {name}={found!r} of this DinoV2, and "
        f"computes with {name}={needed!r}; one with that can be saved"
      )
  return config


def gated_width(hidden: int) -> int:
  """Features of SwiGLU with as many parameters as an MLP of `hidden` ones.

  Two thirds of them, up to a multiple of 8.
  """
  return (hidden * 2 // 3 + 7) // 8 * 8


def text(config: Config) -> TextEncoder:
  """LDM's text encoder, which diffusers calls LDMBertModel.

  Raises:
    ConfigError: a key asks for something that `TextEncoder` does not support.
  """
  values = read(config, BERT)
  width, hidden = values["d_model"], values["encoder_ffn_dim"]
  if hidden != 4 * width:
    raise refusal(BERT.kind, "encoder_ffn_dim", hidden, (4 * width,))
  return TextEncoder(
    values["vocab_size"],
    width,
    values["encoder_layers"],
    values["encoder_attention_heads"],
    values["head_dim"],
    values["max_position_embeddings"],
  )


def text_config(text: TextEncoder) -> dict[str, Any]:
  """The config.json of diffusers' LDMBertModel."""
  return {
    "activation_function": "gelu",
    "architectures": [BERT.kind],
    "d_model": text.width,
    "encoder_attention_heads": text.heads,
    "encoder_ffn_dim": 4 * text.width,
    "encoder_layers": text.depth,
    "head_dim": text.head_width,
    "max_position_embeddings": text.length,
    "model_type": "ldmbert",
    "pad_token_id": 0,
    "vocab_size": text.vocabulary,
  }


def classes(config: Config) -> ClassEmbedder:
  """LDM's ClassEmbedder, whose last class is the null class.

  Raises:
    ConfigError: another class, or an unknown key.
  """
  class_name(config, (CLASSES.kind,))
  values = read(config, CLASSES)
  return ClassEmbedder(values["n_classes"] - 1, values["embed_dim"])


def classes_config(classes: ClassEmbedder) -> dict[str, Any]:
  """The inverse of `classes`; diffusers has no such network."""
  return {
    "_class_name": CLASSES.kind,
    "embed_dim": classes.width,
    "n_classes": classes.classes + 1,
  }
