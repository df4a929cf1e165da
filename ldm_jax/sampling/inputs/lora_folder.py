"""LoRAs that prompts name, found in one folder."""

import difflib
import logging
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from ldm_jax.data.text.prompt_syntax import split_loras
from ldm_jax.errors import ConfigError
from ldm_jax.sampling.inputs.files import sha256

logger = logging.getLogger(__name__)

SUFFIX = ".safetensors"


def find_loras(
  folder: str | os.PathLike | None, prompts: Sequence[str]
) -> dict[str, str]:
  """The files of the LoRAs in prompts, by name.

  A name is compared with those of the folder's own files, so that no prompt
  can lead to a file elsewhere.

  Raises:
    ConfigError: there is no folder, or no such file in it.
  """
  tags = [tag for prompt in prompts for tag in split_loras(prompt)[1]]
  names = list(dict.fromkeys(tag.name for tag in tags))
  if not names:
    return {}
  if folder is None:
    raise ConfigError(
      f"a prompt names the LoRA {names[0]!r}; give the folder that holds "
      "it as lora_folder (--lora_folder), or leave it out"
    )
  try:
    files = {
      pathlib.Path(entry.name).stem: entry.path
      for entry in os.scandir(folder)
      if entry.name.endswith(SUFFIX) and entry.is_file()
    }
  except OSError as error:
    raise ConfigError(
      f"lora_folder {os.fspath(folder)}: {error.strerror}"
    ) from error
  for name in names:
    if name not in files:
      close = difflib.get_close_matches(name, files, 1)
      hint = f"; did you mean {close[0]}?" if close else ""
      raise ConfigError(
        f"lora_folder {os.fspath(folder)} has no file {name + SUFFIX!r}, which "
        f"a prompt names{hint}"
      )
  return {name: files[name] for name in names}


def loras_metadata(files: Mapping[str, str]) -> dict[str, Any]:
  """What images say of the LoRAs that their request's prompts name."""
  if not files:
    return {}
  return {"prompt_loras": {name: sha256(path) for name, path in files.items()}}


def warn_of_other_loras(
  metadata: Mapping[str, Any], files: Mapping[str, str]
) -> None:
  """Logs LoRAs that are not those that an image was made with."""
  then = metadata.get("prompt_loras")
  for name, path in files.items():
    expected = then.get(name) if isinstance(then, dict) else None
    if expected not in (None, sha256(path)):
      logger.warning("the image was made with another LoRA than %s", path)
