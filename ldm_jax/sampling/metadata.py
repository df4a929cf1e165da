"""A request inside a PNG: written, and read back.

Two text chunks: "ldm_jax" holds JSON whose keys are the fields of
`GenerationRequest`, with the model's defaults written out; "parameters" is
what AUTOMATIC1111's web UI writes, and ComfyUI and Civitai read.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

import ldm_jax
from ldm_jax.data.open_images import read_png_text
from ldm_jax.errors import ConfigError, ImageError, config_errors
from ldm_jax.files.strict_json import parse_object
from ldm_jax.sampling.inputs.files import is_path, sha256
from ldm_jax.sampling.inputs.request_types import check_json_types
from ldm_jax.sampling.request import GenerationRequest, Number, Replay

# A1111's names where they are not this package's names in capitals.
A1111_SAMPLERS = {
  "euler": "Euler",
  "euler_ancestral": "Euler a",
  "heun": "Heun",
  "dpm2": "DPM2",
  "dpm2_ancestral": "DPM2 a",
  "dpmpp_2m": "DPM++ 2M",
  "dpmpp_2m_sde": "DPM++ 2M SDE",
  "unipc": "UniPC",
}
A1111_SCHEDULES = {
  "karras": "Karras",
  "exponential": "Exponential",
  "sgm_uniform": "SGM Uniform",
  "simple": "Simple",
  "beta": "Beta",
  "kl_optimal": "KL Optimal",
}
FILES = (
  *("segmap", "depth", "layout", "neighbours", "image", "mask"),
  *("control_image", "initial_latents"),
)
FOLDERS = ("controlnet", "classifier")
FIELDS = {field.name for field in dataclasses.fields(GenerationRequest)}
UNWRITTEN = {"num", "batch", "output", "invert"}  # of one image all the same

# Keys of version 0.1.0 that had other names.
_OLD_NAMES = {"spacing": "timestep_spacing"}


def request_metadata(request: GenerationRequest) -> dict[str, Any]:
  """The fields of a request, in JSON's types, and hashes of its files."""
  fields = {
    field.name: getattr(request, field.name)
    for field in dataclasses.fields(request)
    if field.name not in UNWRITTEN
  }
  boxes = fields["layout"]
  if boxes is not None and not is_path(boxes):
    boxes, fields["layout"] = [dict(box) for box in boxes], None
  hashes = {
    name: sha256(fields[name]) for name in FILES if fields[name] is not None
  }
  conditions = request.conditions or {}
  hashes |= {f"conditions.{n}": sha256(v) for n, v in conditions.items()}
  paths = {n: os.fspath(v) for n, v in conditions.items() if is_path(v)}
  fields["conditions"] = paths or None
  for name in (*FILES, *FOLDERS):
    value = fields[name]
    fields[name] = os.fspath(value) if is_path(value) else None
  if not is_path(boxes):
    fields["layout"] = boxes  # JSON as it is
  if not isinstance(fields["sampler"], str | None):
    name = type(fields["sampler"]).__name__
    fields["sampler"] = getattr(fields["sampler"], "__name__", name)
  if not isinstance(fields["guidance"], Number):
    hashes["guidance"] = repr(fields["guidance"])
    fields["guidance"] = None
  return fields | {"input_hashes": hashes}


def image_metadata(
  fields: Mapping[str, Any], prompt: str | None, index: int, replay: Replay
) -> dict[str, Any]:
  """The metadata of one image.

  Args:
    fields: of `request_metadata`, and of the pipeline.
    prompt: the image's own, or None to keep the request's.
    index: of the image.
  """
  own = {} if prompt is None else {"prompt": prompt}
  return {
    **fields,
    **own,
    "index": index,
    "replay": dataclasses.asdict(replay),
    "ldm_jax": ldm_jax.__version__,
  }


def png_text(metadata: Mapping[str, Any]) -> dict[str, str]:
  """The text chunks of a PNG."""
  return {
    "parameters": a1111_parameters(metadata),
    "ldm_jax": json.dumps(metadata),
  }


def a1111_parameters(metadata: Mapping[str, Any]) -> str:
  """The text that A1111's web UI writes."""
  model = os.path.basename(os.path.normpath(metadata["model"]))
  sampler, has_image = metadata["sampler"], "image" in metadata["input_hashes"]
  scale = metadata["guidance"]
  pairs = {
    "Steps": metadata["steps"],
    "Sampler": A1111_SAMPLERS.get(sampler, sampler.upper()),
    "Schedule type": A1111_SCHEDULES.get(metadata["timestep_spacing"]),
    "CFG scale": None if scale is None else f"{scale:g}",
    "Image CFG scale": metadata["image_guidance_scale"],
    "Seed": metadata["seed"],
    "Size": f"{metadata['width']}x{metadata['height']}",
    "Model": json.dumps(model) if "," in model else model,
    "Clip skip": metadata["clip_skip"],
    "Denoising strength": metadata["strength"] if has_image else None,
    "Version": f"ldm_jax {metadata['ldm_jax']}",
  }
  prompt = metadata["prompt"]
  if not isinstance(prompt, str):  # an interpolation's two, or none
    prompt = prompt[0] if prompt else ""
  # Readers find the settings behind the negative prompt, even an empty one.
  lines = [prompt, f"Negative prompt: {metadata['negative_prompt'] or ''}"]
  settings = (f"{k}: {v}" for k, v in pairs.items() if v is not None)
  return "\n".join([*lines, ", ".join(settings)])


def read_metadata(path: str | os.PathLike) -> dict[str, Any]:
  """The metadata that a PNG of ldm_jax holds.

  Raises:
    ConfigError: it is not such an image.
  """
  with config_errors(ImageError):
    _, text = read_png_text(path, "ldm_jax")
  if text is None:
    raise ConfigError(f"{os.fspath(path)} holds no metadata of ldm_jax")
  name = f"the metadata of ldm_jax in {os.fspath(path)}"
  return parse_object(text, name, ConfigError)


def parse_metadata(
  metadata: Mapping[str, Any], changes: Mapping[str, Any]
) -> GenerationRequest:
  """The request of an image's metadata, of this version or the one before.

  Args:
    changes: fields in place of the image's own; with another num or batch the
      image is not repeated bit for bit.

  Raises:
    ConfigError: a file is not the one that the image was made from, or was
      an array that the image does not hold.
  """
  try:
    fields = metadata if "replay" in metadata else _of_old(metadata)
  except (TypeError, ValueError, AttributeError, KeyError) as error:
    raise ConfigError(f"the image's metadata is malformed: {error}") from error
  known = {name: fields[name] for name in fields if name in FIELDS} | {"num": 1}
  replay = known.pop("replay", None)
  for name, value in known.items():
    if isinstance(value, list) and name != "layout":
      known[name] = tuple(value)
  check_json_types(known)
  if replay and not {"num", "batch"} & set(changes):
    known["replay"] = _replay(replay)
  known |= changes
  _check_hashes(fields.get("input_hashes", {}), known)
  return GenerationRequest(**known)


def _replay(fields: Any) -> Replay:
  """Raises ConfigError unless they are whole numbers."""
  names = {field.name for field in dataclasses.fields(Replay)}
  is_known = isinstance(fields, Mapping) and fields.keys() <= names
  if is_known and all(
    type(number) is int and 0 <= number < 2**31 for number in fields.values()
  ):
    try:
      return Replay(**fields)
    except TypeError:  # a name is missing
      pass
  raise ConfigError(
    f"the image's metadata has a malformed replay; expected whole numbers "
    f"{', '.join(sorted(names))}"
  )


def _check_hashes(hashes: Any, fields: Mapping[str, Any]) -> None:
  if not isinstance(hashes, Mapping):
    raise ConfigError("the image's metadata has malformed input_hashes")
  for name, expected in hashes.items():
    owner, _, key = name.partition(".")
    value = fields.get(owner)
    if key:
      value = value.get(key) if isinstance(value, Mapping) else None
    if value is None:
      raise ConfigError(
        f"the image was made from {name} in memory, which it does not hold; "
        f"give {name}"
      )
    if name == "guidance":
      continue  # given as an object
    try:
      found = sha256(value)
    except OSError as error:
      raise ConfigError(f"{name} {value}: {error.strerror}") from error
    if found != expected and is_path(value):
      raise ConfigError(
        f"{name} {os.fspath(value)} is not the file that the image was made "
        f"from (SHA-256 {found[:12]}, then {str(expected)[:12]})"
      )


def _of_old(metadata: Mapping[str, Any]) -> dict[str, Any]:
  """Metadata of version 0.1.0 under the present names, without a replay."""
  fields = {_OLD_NAMES.get(k, k): v for k, v in metadata.items()}
  if fields.get("toward") is not None:
    fields["prompt"] = (fields["prompt"], fields["toward"])
  if fields.get("outpaint") is not None:
    fields["outpaint"] = tuple(map(int, fields["outpaint"].split(",")))
  if fields.get("image") is None:
    fields["strength"] = None
  fields["noise_level"] = None  # was written for every model
  if fields.get("controlnet") is None:
    fields["control_image"] = None
  scale, *interval = fields.pop("control", (1.0, 0.0, 1.0))
  fields |= {"control_scale": scale, "control_interval": tuple(interval)}
  # The scale stood in place of the classifier's path.
  if isinstance(fields.get("classifier"), int | float):
    fields |= {"classifier": None, "classifier_scale": 1.0}
  return fields
