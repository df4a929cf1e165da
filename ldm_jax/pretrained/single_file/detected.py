"""What was detected in a single file."""

import dataclasses
from typing import Any

from ldm_jax.pretrained.single_file.submodules import Submodule


@dataclasses.dataclass(frozen=True)
class Detected:
  """The networks of a file.

  Attributes:
    family: a key of families.FAMILIES, a family of transformers, or "vae" for
      an autoencoder alone.
    unet: the denoiser.
    text_encoders: or LDM's class embedder.
    scheduler: what scheduler_config.json would hold; None without a denoiser.
    warnings: what is missing or was guessed, a line each.
  """

  family: str
  unet: Submodule | None
  vae: Submodule | None
  text_encoders: tuple[Submodule, ...]
  scheduler: dict[str, Any] | None
  warnings: tuple[str, ...]
