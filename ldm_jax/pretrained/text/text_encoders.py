"""Reads published text encoders for a model that is trained with them."""

from collections.abc import Sequence
from typing import Any

from ldm_jax.errors import ConfigError
from ldm_jax.latent_diffusion import LatentDiffusion
from ldm_jax.nn.conditioners.clip_embedder import ClipEmbedder
from ldm_jax.nn.conditioners.t5_embedder import T5Embedder
from ldm_jax.nn.encoders.clip_text import ClipText
from ldm_jax.nn.encoders.t5 import T5Encoder
from ldm_jax.pretrained.networks import load, with_dtype
from ldm_jax.pretrained.text.open_encoder import open_encoder

# Fields that a config chooses and no folder says.
_FREE = {
  ClipText: ("end", "attention_backend"),
  T5Encoder: ("is_scanned", "remat"),
}


def load_text_encoders(
  model: LatentDiffusion, folders: Sequence[str]
) -> dict[str, Any]:
  """Variables of the model's frozen conditioners, by their keys in the batch.

  Args:
    folders: one for each text encoder, in order; of T5 also a single file.

  Raises:
    ConfigError: there are more or fewer folders than text encoders, or a folder
      holds another text encoder than the config's.
    WeightsError: a folder's weights are missing or malformed.
  """
  conditioners = [
    conditioner
    for conditioner in model.conditioners
    if conditioner.input_key in model.frozen_conditioners
  ]
  needed = sum(len(_encoders(c)) for c in conditioners)
  if needed != len(folders):
    raise ConfigError(
      f"the model has {needed} text encoders that are not trained, but "
      f"text_encoders names {len(folders)} folders; write for example "
      "--config.text_encoders=model/text_encoder"
    )
  remaining = iter(folders)
  return {
    conditioner.input_key: {
      "params": {
        name: _read(encoder, next(remaining))
        for name, encoder in _encoders(conditioner).items()
      }
    }
    for conditioner in conditioners
  }


def _encoders(conditioner: ClipEmbedder | T5Embedder) -> dict[str, Any]:
  """The text encoders of a conditioner, by the names of their parameters."""
  if isinstance(conditioner, T5Embedder):
    return {"encoder": conditioner.encoder}
  return {f"encoders_{i}": each for i, each in enumerate(conditioner.encoders)}


def _read(needed: ClipText | T5Encoder, path: str) -> Any:
  """The parameters of a text encoder in a folder, or a T5 in a file."""
  found, variables = load(open_encoder(path))
  same = with_dtype(found, needed.dtype)
  if type(found) is type(needed):
    own = {name: getattr(needed, name) for name in _FREE[type(needed)]}
    same = same.clone(**own)
  if same != needed:
    raise ConfigError(
      f"{path} holds a text encoder of {_describe(found)}; the config asks "
      f"for {_describe(needed)}; write its fields into the config"
    )
  return variables["params"]


def _describe(encoder: Any) -> str:
  names = ("vocabulary", "width", "depth", "heads", "head_width", "length")
  names += ("hidden", "activation", "projection", "buckets", "distance")
  found = {n: getattr(encoder, n) for n in names if hasattr(encoder, n)}
  values = " ".join(f"{name}={value}" for name, value in found.items())
  return f"{type(encoder).__name__} {values}"
