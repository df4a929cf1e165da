"""Repositories of the Hugging Face hub, copied to this machine first."""

import os
import re
from collections.abc import Callable, Sequence
from typing import Any

from ldm_jax.errors import ConfigError, WeightsError
from ldm_jax.run import Run

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_FILE = re.compile(r"([\w.-]+/[\w.-]+)/([\w./-]+\.(?:safetensors|bin|pt))")
_TEXTS = ("*.json", "*.txt", "*.model")
_RUN = ("*.json", "metrics.jsonl", "checkpoints/*", "frozen/*", "tokenizer/*")
# The names that diffusers and peft give to the file of an adapter.
_ADAPTERS = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")


def local_path(
  path: str,
  *,
  subfolder: str | None = None,
  variant: str | None = None,
  revision: str | None = None,
) -> str:
  """`path` if it exists, else the local copy of the repository it names.

  Fetches a run, or safetensors, and torch's files only where there are none.
  The hub's environment variables apply (HF_HOME, HF_TOKEN, HF_HUB_OFFLINE).

  Raises:
    ConfigError: there is no such path or repository, or the repository cannot
      be fetched.
    WeightsError: `path` is a broken link.
  """
  if os.path.exists(path):
    return path
  if os.path.islink(path):
    raise WeightsError(f"{path!r} is a broken link")
  if not REPOSITORY.fullmatch(path):
    raise ConfigError(
      f"there is no run, file or folder {path!r}, nor is it the name of a "
      "repository such as owner/model"
    )
  for suffix in ("safetensors", "bin"):
    patterns = [*_TEXTS, *_weights(subfolder, variant, suffix)]
    folder = _snapshot(path, patterns, revision)
    if Run.exists(folder):
      return _snapshot(path, _RUN, revision)
    if any(name.endswith(suffix) for name in _files(folder)):
      return folder
  raise ConfigError(f"{path!r} has no weights of variant {variant!r}")


def local_run(path: str | os.PathLike) -> str:
  """`path`, or the local copy of the run that a repository holds.

  Raises:
    ConfigError: there is no such path, and it cannot be fetched.
  """
  path = os.fspath(path)
  is_named = not os.path.lexists(path) and REPOSITORY.fullmatch(path)
  return local_path(path) if is_named else path


def local_adapter(path: str | os.PathLike) -> str:
  """`path`, or the local copy of the adapter that a repository holds.

  Args:
    path: a file; or owner/model, whose adapter has the name that diffusers or
      peft gives it, or is the only .safetensors; or owner/model/FILE.

  Raises:
    ConfigError: the repository cannot be fetched, or has no such file.
  """
  path = os.fspath(path)
  named = _FILE.fullmatch(path)
  is_repository = REPOSITORY.fullmatch(path) and not path.endswith(
    (".safetensors", ".bin", ".pt", ".ckpt")
  )
  if os.path.lexists(path) or not (named or is_repository):
    return path
  repository, name = named.groups() if named else (path, None)
  if name is None:
    name = _adapter_name(repository)
  folder = _snapshot(repository, [name, "adapter_config.json"])
  if not os.path.isfile(os.path.join(folder, name)):
    raise ConfigError(f"the repository {repository!r} has no file {name!r}")
  return os.path.join(folder, name)


def _adapter_name(repository: str) -> str:
  """The file of an adapter's repository."""
  names = _names(repository)
  known = [name for name in _ADAPTERS if name in names]
  others = [n for n in names if n.endswith(".safetensors") and "/" not in n]
  if known or len(others) == 1:
    return (known or others)[0]
  raise ConfigError(
    f"the repository {repository!r} has {len(others)} .safetensors at its top; "
    f"name one, such as {repository}/{(others or ['FILE.safetensors'])[0]}"
  )


def _names(repository: str) -> Sequence[str]:
  """The files of a repository; of its local copy where HF_HUB_OFFLINE is set.

  Raises:
    ConfigError: it cannot be reached.
  """
  hub = hub_library(repository)
  if hub.constants.HF_HUB_OFFLINE:
    return _files(_snapshot(repository, ["*.safetensors"]))
  return _reached(repository, lambda: hub.HfApi().list_repo_files(repository))


def _snapshot(
  repository: str, patterns: Sequence[str], revision: str | None = None
) -> str:
  """The folder of a local copy with the files of these patterns."""
  hub = hub_library(repository)
  return _reached(
    repository,
    lambda: hub.snapshot_download(
      repository,
      revision=revision,
      allow_patterns=list(patterns),
      ignore_patterns=["safety_checker/*"],
    ),
  )


def hub_library(repository: str) -> Any:
  """The package huggingface_hub; raises ConfigError where it is missing."""
  try:
    import huggingface_hub
  except ImportError:
    raise ConfigError(
      f"{repository!r} does not exist; to fetch it from the hub: "
      "pip install huggingface_hub"
    ) from None
  return huggingface_hub


def _reached(repository: str, call: Callable[[], Any]) -> Any:
  """What `call` returns; raises ConfigError where it fails."""
  try:
    return call()
  except Exception as error:  # the hub's, of many kinds, and the network's
    line = " ".join(str(error).split())[:200]
    raise ConfigError(
      f"{repository!r} does not exist and cannot be fetched from the hub "
      f"({line}); give a local folder or file"
    ) from error


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
  """Names relative to the folder, with /."""
  return [
    os.path.relpath(os.path.join(place, name), folder).replace(os.sep, "/")
    for place, _, names in os.walk(folder)
    for name in names
  ]
