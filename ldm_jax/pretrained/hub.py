"""Repositories of the Hugging Face hub, copied to this machine first."""

import os
import re

from ldm_jax.errors import ConfigError, WeightsError

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_TEXTS = ("*.json", "*.txt", "*.model")


def local(
  path: str,
  *,
  subfolder: str | None = None,
  variant: str | None = None,
  revision: str | None = None,
) -> str:
  """`path` itself if it is here, else the copy of the repository it names.

  Safetensors are fetched, and torch's files only where there are none. The
  hub's own variables are honoured (HF_HOME, HF_TOKEN, HF_HUB_OFFLINE).

  Raises:
    ConfigError: it is neither here nor a repository, or the repository cannot
      be had.
  """
  if os.path.exists(path):
    return path
  if os.path.islink(path):
    raise WeightsError(f"{path!r} is a link that leads nowhere")
  if not _REPOSITORY.fullmatch(path):
    raise ConfigError(
      f"there is no run, file or folder {path!r}, nor is it the name of a "
      "repository such as owner/model"
    )
  try:
    import huggingface_hub
  except ImportError:
    raise ConfigError(
      f"{path!r} is not here; to fetch it from the hub: "
      "pip install huggingface_hub"
    ) from None
  for suffix in ("safetensors", "bin"):
    patterns = [*_TEXTS, *_weights(subfolder, variant, suffix)]
    try:
      folder = huggingface_hub.snapshot_download(
        path,
        revision=revision,
        allow_patterns=patterns,
        ignore_patterns=["safety_checker/*"],
      )
    except Exception as error:  # the hub's, of many kinds, and the network's
      line = " ".join(str(error).split())[:200]
      raise ConfigError(
        f"{path!r} is not here and cannot be fetched from the hub ({line}); "
        "give a local folder or file"
      ) from error
    if any(name.endswith(suffix) for name in _files(folder)):
      return folder
  raise ConfigError(f"{path!r} has no weights of variant {variant!r}")


def _weights(
  subfolder: str | None, variant: str | None, suffix: str
) -> list[str]:
  """Patterns of weights that a folder of diffusers has, not of lone files."""
  where = f"{subfolder}/" if subfolder else "*/"
  stems = ("diffusion_pytorch_model", "model", "pytorch_model")
  middle = f".{variant}" if variant else ""
  names = [f"{stem}{middle}.{suffix}" for stem in stems]
  names += [f"{stem}{middle}-0*.{suffix}" for stem in stems]
  names += [f"{stem}-0*{middle}.{suffix}" for stem in stems]
  # A lone network's repository has its weights at the top.
  return [where + name for name in names] + ([] if subfolder else names)


def _files(folder: str) -> list[str]:
  return [name for _, _, names in os.walk(folder) for name in names]
