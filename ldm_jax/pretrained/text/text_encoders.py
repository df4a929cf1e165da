"""Reads published text encoders for a model that is trained with them."""

from collections.abc import Sequence
from typing import Any

from ldm_jax.errors import ConfigError
from ldm_jax.latent_diffusion import LatentDiffusion
from ldm_jax.nn.encoders.clip_text import ClipText
from ldm_jax.pretrained.components import open_network
from ldm_jax.pretrained.hub.fetch import local_path
from ldm_jax.pretrained.networks import load, with_dtype


def load_text_encoders(
  model: LatentDiffusion, folders: Sequence[str]
) -> dict[str, Any]:
  """Variables of the model's frozen conditioners, by their keys in the batch.

  Args:
    folders: one for each text encoder, in order.

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
  needed = sum(len(c.encoders) for c in conditioners)
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
        f"encoders_{i}": _read(encoder, next(remaining))
        for i, encoder in enumerate(conditioner.encoders)
      }
    }
    for conditioner in conditioners
  }


def _read(needed: ClipText, folder: str) -> Any:
  found, variables = load(open_network(local_path(folder)))
  same = with_dtype(found, needed.dtype).clone(
    end=needed.end, attention_backend=needed.attention_backend
  )
  if same != needed:
    raise ConfigError(
      f"{folder} holds a text encoder of {_describe(found)}; the config asks "
      f"for {_describe(needed)}; write the folder's"
    )
  return variables["params"]


def _describe(encoder: ClipText) -> str:
  names = ("vocabulary", "width", "depth", "heads", "length", "hidden")
  names += ("activation", "projection")
  return " ".join(f"{name}={getattr(encoder, name)}" for name in names)
