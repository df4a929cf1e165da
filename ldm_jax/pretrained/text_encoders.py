"""Text towers from their folders, for a U-Net that learns to listen to them."""

from collections.abc import Sequence
from typing import Any

from ldm_jax.errors import ConfigError
from ldm_jax.latent_diffusion import LatentDiffusion
from ldm_jax.nn.conditioners.clip_embedder import ClipEmbedder
from ldm_jax.pretrained import hub
from ldm_jax.pretrained.components import open_network
from ldm_jax.pretrained.networks import computing, load


def load_text_encoders(
  model: LatentDiffusion, folders: Sequence[str]
) -> dict[str, Any]:
  """Variables of the model's frozen conditioners, by what each reads.

  Raises:
    ConfigError: there are more or fewer folders than towers, or a folder holds
      another tower than the config's.
    WeightsError: a folder's weights are missing or malformed.
  """
  parts = [
    part
    for part in model.conditioners
    if part.input_key in model.frozen_conditioners
  ]
  needed = sum(len(part.encoders) for part in parts)
  if needed != len(folders):
    raise ConfigError(
      f"the model listens through {needed} towers that are not trained, but "
      f"text_encoders names {len(folders)} folders; write for example "
      "--config.text_encoders=model/text_encoder"
    )
  left = list(folders)
  return {
    part.input_key: {
      "params": {
        f"encoders_{i}": _read(part, i, left.pop(0))
        for i in range(len(part.encoders))
      }
    }
    for part in parts
  }


def _read(part: ClipEmbedder, i: int, folder: str) -> Any:
  found, variables = load(open_network(hub.local(folder)))
  asked = part.encoders[i]
  same = computing(found, asked.dtype).clone(
    end=asked.end, attention_backend=asked.attention_backend
  )
  if same != asked:
    raise ConfigError(
      f"{folder} holds a tower of {_told(found)}; the config asks for "
      f"{_told(asked)}; write the folder's"
    )
  return variables["params"]


def _told(tower: Any) -> str:
  names = ("vocabulary", "width", "depth", "heads", "length", "hidden")
  names += ("activation", "projection")
  return " ".join(f"{name}={getattr(tower, name)}" for name in names)
