"""peft's adapter_config.json, read strictly.

Each key of a config is obeyed, is known to change nothing of what is merged, or
is refused by name.
"""

import logging
import math
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from ldm_jax.errors import WeightsError
from ldm_jax.files.strict_json import parse_json
from ldm_jax.weights import mmap_files
from ldm_jax.weights.file_types import SAFETENSORS, START_LENGTH, file_type
from ldm_jax.weights.safetensors_files import metadata

logger = logging.getLogger(__name__)

METADATA = "lora_adapter_metadata"  # diffusers/loaders/lora_base.py
_PEFT = "adapter_model", "adapter_config.json"  # the files of a peft folder
_KINDS = ("LORA", "LOHA", "LOKR")

# peft 0.21: which modules are adapted (their tensors say it), what matters in
# training alone, and where the base model was found.
_HARMLESS = frozenset({
  *("target_modules", "exclude_modules", "layers_to_transform"),
  *("layers_pattern", "task_type", "auto_mapping", "peft_version"),
  *("base_model_name_or_path", "revision", "inference_mode"),
  *("lora_dropout", "rank_dropout", "module_dropout", "rank_dropout_scale"),
  *("init_weights", "use_effective_conv2d", "decompose_both"),
  *("decompose_factor", "megatron_config", "megatron_core", "loftq_config"),
  *("eva_config", "corda_config", "lora_ga_config", "runtime_config"),
  *("qalora_group_size", "ensure_weight_tying", "velora_config"),
})  # fmt: skip
# Ways to start that leave the base model's weights as they are; the others
# (PiSSA, OLoRA, LoftQ, CorDA, LoRA-GA) store factors for a changed one.
_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
_BIASES = ("none", "all", "lora_only")
_NETWORKS = (
  "unet.",
  "transformer.",
  "text_encoder.",
  "text_encoder_2.",
  "text_encoder_3.",
  "text_model.",
)
_REPEATS = re.compile(r"(?<!\\)[*+{]")
# A repeated group, a reference to a group, a group of special meaning.
_SLOW = re.compile(r"\)[*+{]|\\[1-9]|\(\?(?!:)")


class AdapterConfig(NamedTuple):
  """What of a config is obeyed.

  Attributes:
    rank: r, as it is stored; None without one.
    alpha: of all modules, as it is stored; None without one.
    rank_pattern, alpha_pattern: of some modules.
    power: of r in alpha / r**power; 1/2 for rank-stabilized LoRA
      (Kalajdzievski 2023).
    is_dora: whether every matrix has a magnitude.
    has_biases: whether it holds biases that replace the model's.
    whole: names of modules that it holds whole.
  """

  rank: Any = None
  alpha: Any = None
  rank_pattern: Mapping[str, Any] = {}
  alpha_pattern: Mapping[str, Any] = {}
  power: float = 1.0
  is_dora: bool = False
  has_biases: bool = False
  whole: tuple[str, ...] = ()

  def alpha_of(self, module: str) -> float | None:
    """alpha of a module.

    Raises:
      WeightsError: it is not a finite number.
    """
    alpha = _of_module(module, self.alpha_pattern, self.alpha)
    if alpha is None:
      return None
    if type(alpha) not in (int, float) or not math.isfinite(alpha):
      raise WeightsError(
        f"alpha of {module} is {alpha!r}; a finite number is needed"
      )
    return float(alpha)

  def rank_of(self, module: str) -> int | None:
    """r of a module.

    Raises:
      WeightsError: it is not a whole number above 0.
    """
    rank = _of_module(module, self.rank_pattern, self.rank)
    if rank is not None and (type(rank) is not int or rank < 1):
      raise WeightsError(
        f"r of {module} is {rank!r}; a whole number above 0 is needed"
      )
    return rank

  def is_whole(self, module: str) -> bool:
    """Whether the module itself is stored, not a change of it."""
    return any(f".{module}".endswith(f".{name}") for name in self.whole)


def read_configs(path: str | os.PathLike) -> dict[str, AdapterConfig]:
  """The configs of a LoRA file by network, "" for all; {} without one.

  They are in the file's metadata, or in a file of its folder.

  Raises:
    WeightsError: one is malformed, or asks for something not supported.
  """
  file = pathlib.Path(path)
  stem, config_file = _PEFT
  if file.stem == stem and (file.parent / config_file).is_file():
    text = (file.parent / config_file).read_bytes()
  else:
    stored = metadata(path) if is_safetensors(path) else {}
    text = stored.get(METADATA, "{}").encode(errors="replace")
  with mmap_files.error_context(path):
    config = parse_json(text, WeightsError)
    if not isinstance(config, dict):
      raise WeightsError("the LoRA's config is not a JSON object")
    networks: dict[str, dict[str, Any]] = {}
    for key, value in config.items():
      # A key may have its network's name before it ("unet.lora_alpha").
      network, _, name = key.rpartition(".")
      networks.setdefault(network, {})[name] = value
    return {name: parse_config(each) for name, each in networks.items()}


def parse_config(config: Mapping[str, Any]) -> AdapterConfig:
  """What a config asks for.

  Raises:
    WeightsError: something that is not supported; the key is named.
  """
  obeyed = dict.fromkeys(_READERS)
  for key, value in config.items():
    if key in _READERS:
      obeyed[key] = _READERS[key](key, value)
    elif key not in _HARMLESS and value not in (None, False, [], {}, ""):
      raise _refusal(key, value, "it to be absent or null")
  lora, other = obeyed["lora_alpha"], obeyed["alpha"]
  return AdapterConfig(
    rank=obeyed["r"],
    alpha=other if lora is None else lora,
    rank_pattern=obeyed["rank_pattern"] or {},
    alpha_pattern=obeyed["alpha_pattern"] or {},
    power=0.5 if obeyed["use_rslora"] else 1.0,
    is_dora=bool(obeyed["use_dora"]),
    has_biases=obeyed["bias"] not in (None, "none"),
    whole=tuple(obeyed["modules_to_save"] or ()),
  )


def is_safetensors(path: str | os.PathLike) -> bool:
  """Whether a file is of that format, by its first bytes.

  Raises:
    WeightsError: it cannot be read.
  """
  with mmap_files.open_weights(path) as file:
    return file_type(file.read(START_LENGTH)) == SAFETENSORS


def _of_module(module: str, patterns: Mapping[str, Any], default: Any) -> Any:
  """The value of the first pattern that matches, as peft finds it.

  A pattern is a regular expression of a whole name, or of its end after a dot.
  """
  names = _within_networks(module)
  for pattern, value in patterns.items():
    found = re.compile(rf"(.*\.)?({pattern})$")
    if any(found.match(name) for name in names):
      return value
  return default


def _within_networks(module: str) -> list[str]:
  """A module's name, and that without its network and `text_model`."""
  names = [module]
  for start in _NETWORKS:
    if names[-1].startswith(start):
      names.append(names[-1].removeprefix(start))
  return names


def _refusal(key: str, value: Any, needed: str) -> WeightsError:
  text = repr(value)
  text = text if len(text) < 80 else f"{text[:80]}..."
  return WeightsError(
    f"its config says {key}={text}, which is not supported; needed is {needed}"
  )


def _any(key: str, value: Any) -> Any:
  return value


def _pattern(key: str, value: Any) -> Any:
  """Regular expressions of modules' names, and values.

  Raises:
    WeightsError: there is another kind, or an expression that is malformed or
      could take long: one that repeats a group, refers back, or has more than
      four repetitions.
  """
  if not isinstance(value, dict | None):
    raise WeightsError(f"its {key} is a {type(value).__name__}")
  for pattern in value or {}:
    needed = None
    if _SLOW.search(pattern) or len(_REPEATS.findall(pattern)) > 4:
      needed = "at most four repetitions, of single letters"
    try:
      re.compile(rf"(.*\.)?({pattern})$")
    except (re.error, OverflowError, RecursionError):
      needed = "a name of modules or a regular expression"
    if needed:
      raise WeightsError(f"its {key} has {pattern[:80]!r}; needed is {needed}")
  return value


def _flag(key: str, value: Any) -> bool:
  if value not in (None, False, True):
    raise _refusal(key, value, "true or false")
  return bool(value)


def _names(key: str, value: Any) -> Any:
  is_list = isinstance(value, list) and all(isinstance(n, str) for n in value)
  if value is not None and not is_list:
    raise _refusal(key, value, "a list of names of modules")
  return value


def _one_of(*supported: Any):
  def check(key: str, value: Any) -> Any:
    is_simple = not isinstance(value, list | dict)
    if not is_simple or value not in supported:
      named = " or ".join("null" if v is None else repr(v) for v in supported)
      raise _refusal(key, value, named)
    return value

  return check


_READERS = {
  "peft_type": _one_of(*_KINDS, None),
  "r": _any,
  "lora_alpha": _any,
  "alpha": _any,
  "rank_pattern": _pattern,
  "alpha_pattern": _pattern,
  "use_rslora": _flag,
  "use_dora": _flag,
  "lora_bias": _flag,
  "bias": _one_of(*_BIASES, None),
  "modules_to_save": _names,
  "fan_in_fan_out": _one_of(False, None),
  "init_lora_weights": _one_of(*_STARTS),
}
