"""The model card of a repository: what the model is, its data and licence."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import ldm_jax
from ldm_jax.pretrained.hub.fetch import REPOSITORY

NOT_STATED = "The author has not stated it."


@dataclasses.dataclass(frozen=True)
class ModelCard:
  """What README.md of a repository says.

  Attributes:
    repository: owner/model.
    description: what `inspect` returns.
    license: an identifier of the hub such as "apache-2.0"; "" if not stated.
    data: what it was trained on, in words or owner/dataset; "" if not stated.
    base_model: owner/model that it was trained from, or "".
    metrics: the newest values, by name.
    settings: of the experiment, by dotted path.
    samples: names of images in the repository.
  """

  repository: str
  description: Mapping[str, Any]
  license: str = ""
  data: str = ""
  base_model: str = ""
  metrics: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  samples: Sequence[str] = ()

  def text(self) -> str:
    """README.md in Markdown, with the hub's metadata before it."""
    name = self.repository.rpartition("/")[2]
    images = "\n".join(f"![{each}]({each})" for each in self.samples)
    sections = {
      "Use": self._use(),
      "Samples": images,
      "Model": _table(_flat(self.description)),
      "Training data": self._data(),
      "Metrics": _table(self.metrics),
      "Licence": self.license or NOT_STATED,
      "Config": _folded(_table(self.settings)) if self.settings else "",
    }
    parts = [f"---\n{self._metadata()}\n---", f"# {name}"]
    parts += [
      f"## {title}\n\n{body}" for title, body in sections.items() if body
    ]
    return "\n\n".join(parts) + "\n"

  def _metadata(self) -> str:
    """YAML, whose scalars and lists may be written as JSON."""
    found: dict[str, Any] = {
      "license": self.license,
      "library_name": "ldm_jax",
      "pipeline_tag": self._pipeline_tag(),
      "tags": ["latent-diffusion", "jax", "ldm_jax"],
      "datasets": [self.data] if REPOSITORY.fullmatch(self.data) else [],
      "base_model": self.base_model,
    }
    lines = [f"{n}: {json.dumps(value)}" for n, value in found.items() if value]
    return "\n".join(lines)

  def _pipeline_tag(self) -> str:
    if "prediction" not in self.description:
      return ""  # not a denoiser
    is_text = "tokens" in self.description.get("conditions", ())
    return "text-to-image" if is_text else "unconditional-image-generation"

  def _use(self) -> str:
    path = self.repository
    if self.description.get("kind") == "adapter":
      base = self.base_model or "MODEL"
      command = f'ldm-jax sample --model={base} --lora={path} --prompt "..."'
    elif "prediction" in self.description:
      command = f"ldm-jax sample --model={path} --num 4"
    else:
      command = f"ldm-jax info {path}"
    return (
      f"```sh\npip install ldm_jax huggingface_hub\n{command}\n```\n\n"
      f"Written by ldm_jax {ldm_jax.__version__}."
    )

  def _data(self) -> str:
    text = self.data or NOT_STATED
    if names := self.description.get("classes"):
      text += f"\n\n{len(names)} classes: {', '.join(map(_cell, names))}."
    return text


def _flat(node: Mapping[str, Any], path: str = "") -> dict[str, Any]:
  """A tree as one level, without the names of classes."""
  found: dict[str, Any] = {}
  for name, value in node.items():
    if isinstance(value, Mapping):
      found |= _flat(value, f"{path}{name} ")
    elif name != "classes":
      found[path + name] = value
  return found


def _table(values: Mapping[str, Any]) -> str:
  """A table of Markdown with two columns; "" without rows."""
  rows = [f"| {_cell(n)} | {_cell(_short(v))} |" for n, v in values.items()]
  return "\n".join(["| | |", "|---|---|", *rows]) if rows else ""


def _folded(table: str) -> str:
  return f"<details><summary>every field</summary>\n\n{table}\n\n</details>"


def _short(value: Any) -> str:
  if isinstance(value, float):
    return f"{value:.5g}"
  return value if isinstance(value, str) else json.dumps(value)


def _cell(text: str) -> str:
  """A text that is read as itself, in one cell."""
  line = " ".join(str(text).split())
  for mark in "\\`*_|<>[]":
    line = line.replace(mark, f"\\{mark}")
  return line
