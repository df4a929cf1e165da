"""A LoRA that was trained here, as other programs read it."""

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np

from ldm_jax.nn.lora import FACTORS, LoRA
from ldm_jax.opened import Opened
from ldm_jax.pretrained.adapter_names import networks
from ldm_jax.weights.convert import Row, list_names
from ldm_jax.weights.errors import WeightsError
from ldm_jax.weights.layouts import LAYOUTS
from ldm_jax.weights.safetensors_files import write_safetensors

Form = Literal["kohya", "peft"]
Path = tuple[str, ...]


def save_lora(
  opened: Opened,
  lora: LoRA,
  factors: Mapping[str, Any],
  path: str | os.PathLike,
  form: Form = "kohya",
) -> None:
  """Writes the factors as a .safetensors of kohya's form, or of peft's.

  kohya's has a tensor of alpha for every matrix; peft's, with the names that
  diffusers loads, has alpha in its metadata.

  Raises:
    WeightsError: a matrix has no name there; they are listed.
  """
  left = dict(pairs_of(factors))
  tensors: dict[str, np.ndarray] = {}
  told: dict[str, Any] = {}
  for starts, start, table in networks(opened, ("diffusers",)):
    for row in table.rows:
      place = (*start, *row.ours.split("/"))
      if place in left:
        down, up = _foreign(*left.pop(place), row)
        module = row.theirs.removesuffix(".weight")
        if form == "kohya":
          name = _kohya(starts, module)
          tensors |= {
            f"{name}.lora_down.weight": down,
            f"{name}.lora_up.weight": up,
            f"{name}.alpha": np.float32(lora.alpha).reshape(()),
          }
        else:
          dotted = next(s for s in starts[::-1] if s.endswith(".") and s)
          if start[0] == "unet":
            dotted = "unet."
          name = dotted + module
          tensors |= {
            f"{name}.lora_A.weight": down,
            f"{name}.lora_B.weight": up,
          }
          network = dotted.partition(".")[0]
          told[f"{network}.r"] = lora.rank
          told[f"{network}.lora_alpha"] = lora.alpha
          modules = told.setdefault(f"{network}.target_modules", [])
          modules.append(name.removeprefix(f"{network}."))
  if left:
    names = ["/".join(place) for place in left]
    raise WeightsError(
      f"no form of LoRA has names for {list_names(names, lambda _: ())}"
    )
  words = {"format": "pt"}
  if form == "peft":
    words["lora_adapter_metadata"] = json.dumps(told)
  write_safetensors(path, tensors, metadata=words)


def pairs_of(
  factors: Mapping[str, Any], path: Path = ()
) -> Iterator[tuple[Path, tuple[np.ndarray, np.ndarray]]]:
  """(path, (down, up)) of every adapted kernel."""
  if factors.keys() == FACTORS:
    yield (
      path,
      (np.asarray(factors["lora_down"]), np.asarray(factors["lora_up"])),
    )
    return
  for name, part in factors.items():
    yield from pairs_of(part, (*path, name))


def _kohya(starts: tuple[str, ...], module: str) -> str:
  """kohya writes the text towers' `text_model` out, and dots as underscores."""
  start = next(s for s in starts[::-1] if s.startswith("lora_"))
  return start + module.replace(".", "_")


def _foreign(
  down: np.ndarray, up: np.ndarray, row: Row
) -> tuple[np.ndarray, np.ndarray]:
  """[r i ...] and [o r ...] of ours [... i r] and [r o]."""
  back = LAYOUTS[row.layout].to_theirs
  window = (1,) * (down.ndim - 2)
  return (
    np.ascontiguousarray(back(down)),
    np.ascontiguousarray(back(up.reshape(*window, *up.shape))),
  )
