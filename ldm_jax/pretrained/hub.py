"""Repositories of the Hugging Face hub, copied to this machine first."""

import os
import re

from ldm_jax.errors import ConfigError, WeightsError

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_TEXTS = ("*.json", "*.txt", "*.model")


def local_path(
  path: str,
  *,
  subfolder: str | None = None,
  variant: str | None = None,
  revision: str | None = None,
) -> str:
  """`path` if it exists, else the local copy of the repository it names.

  Fetches safetensors, and torch's files only where there are none. The hub's
  environment variables apply (HF_HOME, HF_TOKEN, HF_HUB_OFFLINE).

  Raises:
    ConfigError: there is no such path or repository, or the repository cannot
      be fetched.
    WeightsError: `path` is a broken link.
  """
  if os.path.exists(path):
    return path
  if os.path.islink(path):
    raise WeightsError(f"{path!r} is a broken link")
  if not _REPOSITORY.fullmatch(path):
    raise ConfigError(
      f"there is no run, file or folder {path!r}, nor is it the name of a "
      "repository such as owner/model"
    )
  try:
    import huggingface_hub
  except ImportError:
    raise ConfigError(
      f"{path!r} does not exist; to fetch it from the hub: "
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
        f"{path!r} does not exist and cannot be fetched from the hub ({line}); "
        "give a local folder or file"
      ) from error
    if any(name.endswith(suffix) for name in _files(folder)):
      return folder
  raise ConfigError(f"{path!r} has no weights of variant {variant!r}")


def _weights(
  subfolder: str | None, variant: str | None, suffix: str
) -> list[str]:
  """Patterns of a diffusers folder's weight files, without single files."""
  folder = f"{subfolder}/" if subfolder else "*/"
  stems = ("diffusion_pytorch_model", "model", "pytorch_model")
  middle = f".{variant}" if variant else ""
  names = [f"{stem}{middle}.{suffix}" for stem in stems]
  names += [f"{stem}{middle}-0*.{suffix}" for stem in stems]
  names += [f"{stem}-0*{middle}.{suffix}" for stem in stems]
  # The repository of one network has its weights at the top.
  return [folder + name for name in names] + ([] if subfolder else names)


def _files(folder: str) -> list[str]:
  return [name for _, _, names in os.walk(folder) for name in names]
