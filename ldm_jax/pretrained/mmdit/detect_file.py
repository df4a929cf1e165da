"""Detects SD 3 and SD 3.5 in a single file, by names and shapes.

Stability's files hold the MMDiT, some of them the autoencoder; those that
ComfyUI reads as a whole hold the text encoders too.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from ldm_jax.diffusion.prediction import Prediction
from ldm_jax.errors import WeightsError
from ldm_jax.pretrained.configs.latent_statistics import TRANSFORMER_LATENTS
from ldm_jax.pretrained.mmdit.folder import SCHEDULER
from ldm_jax.pretrained.mmdit.mmdit_config import SD3, mmdit
from ldm_jax.pretrained.single_file import submodules
from ldm_jax.pretrained.single_file.detected import Detected
from ldm_jax.pretrained.single_file.families import Family
from ldm_jax.pretrained.single_file.submodules import PartialConfig, Submodule
from ldm_jax.pretrained.single_file.tensor_shapes import Shape, Shapes
from ldm_jax.pretrained.text.encoder_shapes import encoder_config

UNET, VAE = "model.diffusion_model.", "first_stage_model."
TEXTS = {
  "text_encoder": "text_encoders.clip_l.transformer.",
  "text_encoder_2": "text_encoders.clip_g.transformer.",
  "text_encoder_3": "text_encoders.t5xxl.transformer.",
}
_FIRST = "joint_blocks.0.x_block.attn.qkv.weight"
_HEAD = 64  # features of a head, in all published ones
_SIDE = 128  # of the latents they were trained on
_LATENTS = TRANSFORMER_LATENTS["mmdit"]
# Tensors of CLIP and of training that are not used.
_IGNORED = re.compile(r"text_encoders\.\w+\.logit_scale|model_ema\..*")


def detect_mmdit(
  shapes: Mapping[str, Shape],
  prediction: Prediction | None,
  config: Mapping[str, PartialConfig],
) -> Detected | None:
  """What a file of an MMDiT holds; None for other files.

  Args:
    prediction: what the caller says that it predicts.
    config: by a component's name, or "scheduler": keys of its config that
      override what the shapes show.

  Raises:
    WeightsError: its shapes are not those of an MMDiT, or it is said to predict
      something else than "flow".
  """
  found = [prefix for prefix in (UNET, "") if prefix + _FIRST in shapes]
  if not found:
    return None
  if prediction not in (None, "flow"):
    raise WeightsError(f"an MMDiT predicts 'flow', not {prediction!r}")
  _check_names(shapes, found[0])
  own = lambda name: config.get(name, {})
  unet = _unet(shapes, found[0], own("unet"))
  vae = submodules.find(shapes, submodules.VAES)
  texts = [
    _text(name, prefix, shapes, own(name))
    for name, prefix in TEXTS.items()
    if any(other.startswith(prefix) for other in shapes)
  ]
  return Detected(
    _family(unet.config),
    unet,
    vae
    and submodules.vae_submodule(
      vae, shapes, Family(_SIDE, None), _LATENTS | dict(own("vae"))
    ),
    tuple(texts),
    SCHEDULER | dict(own("scheduler")),
    _missing(vae is not None),
  )


def _check_names(shapes: Mapping[str, Shape], prefix: str) -> None:
  """Raises WeightsError for tensors of no network known here."""
  known = (prefix, *(site.prefix for site in submodules.VAES), *TEXTS.values())
  unknown = [
    name
    for name in shapes
    if prefix and not name.startswith(tuple(filter(None, known)))
    if not _IGNORED.fullmatch(name)
  ]
  if unknown:
    raise WeightsError(
      f"{len(unknown)} tensors of no network known here ({unknown[0]}, ...); "
      "if they are not used, remove them from the file"
    )


def _family(config: Mapping[str, Any]) -> str:
  """By QK norm, and by blocks with a second attention."""
  if config["qk_norm"] is None:
    return "sd3"
  is_dual = bool(config["dual_attention_layers"])
  return "sd3.5-medium" if is_dual else "sd3.5-large"


def _unet(
  shapes: Mapping[str, Shape], prefix: str, overrides: PartialConfig
) -> Submodule:
  """The MMDiT; only the number of heads without QK norm is a convention."""
  own = Shapes(shapes, prefix)
  kernel, positions = own["x_embedder.proj.weight"], own["pos_embed"]
  norm = shapes.get(f"{prefix}joint_blocks.0.x_block.attn.ln_q.weight")
  depth, width = own.count("joint_blocks"), kernel[0]
  head = (norm or (_HEAD,))[0]
  heads = overrides.get("num_attention_heads") or (head and width // head)
  is_whole = type(heads) is int and heads > 0 and width % heads == 0
  if len(kernel) != 4 or len(positions) != 3 or 0 in kernel or not is_whole:
    raise WeightsError(
      f"x_embedder.proj.weight and pos_embed of shapes {kernel} and "
      f"{positions}, with {heads} heads, are not those of an MMDiT; give its "
      'number of heads as config={"unet": {"num_attention_heads": ...}}'
    )
  patch = kernel[2]
  found = {
    "_class_name": SD3.kind,
    "sample_size": _SIDE // patch * patch,
    "patch_size": patch,
    "in_channels": kernel[1],
    "num_layers": depth,
    "attention_head_dim": width // heads,
    "num_attention_heads": heads,
    "joint_attention_dim": own["context_embedder.weight"][1],
    "caption_projection_dim": width,
    "pooled_projection_dim": own["y_embedder.mlp.0.weight"][1],
    "out_channels": own["final_layer.linear.weight"][0] // patch**2,
    "pos_embed_max_size": math.isqrt(positions[1]),
    "dual_attention_layers": [
      i for i in range(depth) if f"joint_blocks.{i}.x_block.attn2" in own
    ],
    "qk_norm": None if norm is None else "rms_norm",
  }
  made = found | dict(overrides)
  mmdit(made)
  return Submodule("unet", "mmdit", prefix, made)


def _text(
  name: str,
  prefix: str,
  shapes: Mapping[str, Shape],
  overrides: PartialConfig,
) -> Submodule:
  """A text encoder under transformers' names."""
  rest = {
    n.removeprefix(prefix): shape
    for n, shape in shapes.items()
    if n.startswith(prefix)
  }
  kind, config = encoder_config(name, rest, overrides)
  return Submodule(name, kind, prefix, config)


def _missing(has_vae: bool) -> tuple[str, ...]:
  """Warns of an absent autoencoder; of text encoders see `absent_encoders`."""
  if has_vae:
    return ()
  return (
    "no autoencoder in the file: SD 3 and SD 3.5 need theirs; give it with "
    "vae=PATH (--vae)",
  )
