"""The config.json of a published network, read strictly.

diffusers and transformers write a network's hyper-parameters as a flat
dictionary. A missing key means the class's default; a key that asks for
something that is not supported is an error, which names the key.
"""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from ldm_jax.errors import ConfigError
from ldm_jax.pretrained.configs.value_types import check_value

Config = Mapping[str, Any]

# The version whose keys are written.
DIFFUSERS = "0.42.1"

# Number formats: the tensors have their own.
_FORMATS = ("dtype", "torch_dtype")


class Schema(NamedTuple):
  """The keys of a class.

  Attributes:
    kind: the class's name.
    defaults: keys that configure the module, with their defaults.
    demands: keys that would make another network, with the supported values;
      the class's default is one of them.
    passive: keys that do not change what is computed; None means all others,
      since transformers' configs hold much that is not about the network.

  Any other key must be null or false, as diffusers writes absent options.
  """

  kind: str
  defaults: Config
  demands: Mapping[str, tuple]
  passive: tuple[str, ...] | None = ()


def class_name(config: Config, kinds: Collection[str]) -> str:
  """The class that the config names, without diffusers' old prefix Flax.

  Raises:
    ConfigError: it names none of `kinds`.
  """
  name = config.get("_class_name")
  kind = str(name).removeprefix("Flax")
  if kind not in kinds:
    raise ConfigError(
      f"_class_name is {name!r}; expected one of {', '.join(kinds)}"
    )
  return kind


def read(config: Config, schema: Schema) -> dict[str, Any]:
  """The schema's defaults, updated from the config; lists become tuples.

  Raises:
    ConfigError: a key asks for something that is not supported.
  """
  values = dict(schema.defaults)
  for key, value in config.items():
    value = tuple(value) if isinstance(value, list) else value
    if key in values:
      check_value(schema.kind, key, value, values[key])
      values[key] = value
    elif key in schema.demands:
      if not any(value == each for each in schema.demands[key]):
        raise refusal(schema.kind, key, value, schema.demands[key])
    elif _is_asking(schema, key) and value is not None and value is not False:
      raise refusal(schema.kind, key, value, (None,))
  return values


def _is_asking(schema: Schema, key: str) -> bool:
  """Whether an unknown key may be about the network."""
  if schema.passive is None or key.startswith("_"):
    return False
  return key not in schema.passive + _FORMATS


def refusal(
  kind: str, key: str, value: Any, needed: str | Collection[Any]
) -> ConfigError:
  """The error for a value that is not supported, with those that are."""
  if not isinstance(needed, str):
    needed = " or ".join("null" if v is None else repr(v) for v in needed)
  return ConfigError(
    f"{kind}: {key}={value!r} is not supported; needed: {needed}"
  )


def is_count(value: Any) -> bool:
  """Whether it is a whole number above 0."""
  return type(value) is int and value > 0


def widths(kind: str, values: Config) -> tuple[int, tuple[int, ...]]:
  """(channels of the first level, multipliers) of `block_out_channels`.

  Raises:
    ConfigError: a level is not a multiple of the first, or does not divide into
      the groups of the norms.
  """
  levels, groups = values["block_out_channels"], values["norm_num_groups"]
  is_list = isinstance(levels, tuple) and levels and all(map(is_count, levels))
  if not is_list or any(level % levels[0] for level in levels):
    needed = "a list of numbers, all multiples of the first"
    raise refusal(kind, "block_out_channels", levels, needed)
  if not is_count(groups) or any(level % groups for level in levels):
    needed = f"a divisor of all of {levels}"
    raise refusal(kind, "norm_num_groups", groups, needed)
  return levels[0], tuple(level // levels[0] for level in levels)


def attending_levels(
  kind: str, values: Config, down: Mapping[str, bool], up: Mapping[str, bool]
) -> tuple[bool, ...]:
  """Which levels attend, finest first, by the names of their blocks.

  Args:
    down, up: whether a block of a name attends, in encoder and decoder.

  Raises:
    ConfigError: another block, another number of them than levels, or a
      decoder that does not mirror the encoder.
  """
  levels = len(values["block_out_channels"])
  for key, kinds in (("down_block_types", down), ("up_block_types", up)):
    names = values[key]
    if len(names) != levels:
      raise refusal(kind, key, names, f"{levels} blocks, one per level")
    for name in names:
      if name not in kinds:
        raise refusal(kind, key, name, kinds)
  found = tuple(down[name] for name in values["down_block_types"])
  mirror = tuple(up[name] for name in reversed(values["up_block_types"]))
  if found != mirror:
    raise refusal(
      kind,
      "up_block_types",
      values["up_block_types"],
      "attention on the levels of down_block_types",
    )
  return found


def one_for_all_levels(kind: str, values: Config, key: str) -> int:
  """A number that may be given once or once per level.

  Raises:
    ConfigError: the levels differ.
  """
  value = values[key]
  each = set(value) if isinstance(value, tuple) else {value}
  if len(each) != 1 or not all(map(is_count, each)):
    raise refusal(kind, key, value, "one number for all levels")
  return each.pop()
