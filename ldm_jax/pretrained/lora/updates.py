"""The updates of a model's parameters that the tensors of a LoRA describe."""

import logging
import math
from collections.abc import Mapping

import numpy as np

from ldm_jax.errors import WeightsError
from ldm_jax.loaded_model import LoadedModel
from ldm_jax.pretrained.lora.adapter_config import AdapterConfig
from ldm_jax.pretrained.lora.changes import (
  Change,
  Hadamard,
  Kronecker,
  LowRank,
  stored,
)
from ldm_jax.pretrained.lora.mismatch import mismatch
from ldm_jax.pretrained.lora.module_names import (
  Module,
  Modules,
  Target,
  modules,
  paths,
)
from ldm_jax.pretrained.lora.parameter_update import (
  Magnitude,
  Update,
  fits,
)
from ldm_jax.pretrained.lora.tensor_names import (
  parse_name,
  refuse_unsupported,
)
from ldm_jax.weights.naming.convert import check_finite
from ldm_jax.weights.naming.layouts import take

logger = logging.getLogger(__name__)

Tensors = Mapping[str, np.ndarray]

# Kinds of changes of a weight, by the first letters of their roles.
_FACTORED = {"lora_": LowRank, "hada_": Hadamard, "lokr_": Kronecker}
_OF_WEIGHT = {"diff", "w_norm", "weight"}
_OF_BIAS = {"diff_b", "b_norm", "bias", "lora_bias"}
_MAGNITUDES = {"dora_scale", "magnitude"}
_VALUES = {"weight", "bias"}  # they replace parameters


def read_updates(
  tensors: Tensors,
  configs: Mapping[str, AdapterConfig],
  loaded: LoadedModel,
) -> list[Update]:
  """The tensors of a LoRA, matched with the model's parameters by name.

  Args:
    configs: peft's, by network; "" for all.

  Raises:
    WeightsError: a tensor fits no parameter, two are for the same, one lacks
      its counterpart, or they are of an unsupported kind.
    NonFiniteWeights: one holds NaN or infinity.
  """
  if not tensors:
    raise WeightsError("it holds no tensors; a LoRA is needed")
  refuse_unsupported(tensors)
  for name, tensor in tensors.items():
    check_finite(name, tensor)
  known, unfit, updates = modules(loaded), [], []
  for names in _by_module(tensors, known, unfit):
    first = parse_name(next(iter(names.values()))).module
    config = _config_of(first, configs)
    parts = {role: tensors[name] for role, name in names.items()}
    try:
      for module in known[first]:
        updates += _updates(first, parts, module, config)
    except (KeyError, ValueError) as error:
      if isinstance(error, WeightsError):
        raise
      unfit += names.values()
  if unfit:
    raise WeightsError(mismatch(unfit, tensors, loaded))
  return updates


def _by_module(
  tensors: Tensors, known: Mapping[str, Modules], unfit: list[str]
) -> list[dict[str, str]]:
  """Names by role for every module; names without one are added to `unfit`."""
  groups: dict[tuple, dict[str, str]] = {}
  identity = {name: paths(module) for name, module in known.items()}
  for name in tensors:
    module, role, _ = parse_name(name)
    if role is None or module not in known:
      unfit.append(name)
      continue
    group = groups.setdefault(identity[module], {})
    if role in group:
      raise WeightsError(f"{group[role]} and {name} are for the same matrix")
    group[role] = name
  return list(groups.values())


def _config_of(
  module: str, configs: Mapping[str, AdapterConfig]
) -> AdapterConfig:
  network = module.partition(".")[0]
  return configs.get(network) or configs.get("") or AdapterConfig()


def _updates(
  name: str, parts: Tensors, module: Module, config: AdapterConfig
) -> list[Update]:
  """The updates of a module.

  Raises:
    ValueError, KeyError: the tensors do not fit each other or the module.
  """
  _require(all(part.dtype.kind in "fV" for part in parts.values()))
  roles = set(parts)
  is_whole = config.is_whole(name)
  _require("weight" not in roles or is_whole)
  _require("bias" not in roles or is_whole or config.has_biases)
  factored = [k for k in _FACTORED if _roles_of(k, roles)]
  whole = sorted(_OF_WEIGHT & roles)
  _require(len(factored) + len(whole) <= 1)
  updates, factor = [], 1.0
  if factored:
    change = _FACTORED[factored[0]].read(parts)
    factor = _factor(name, change, parts, config)
    updates.append(_weight_update(name, change, factor, parts, module, config))
    roles -= _roles_of(factored[0], roles) | {"alpha"} | _MAGNITUDES
  elif whole:
    (role,) = whole
    updates.append(_whole(module.weight, role, parts[role]))
    roles -= {role}
  of_bias = _OF_BIAS & roles
  _require(len(of_bias) <= 1 and roles <= _OF_BIAS)
  for role in of_bias:
    scale = factor if role == "lora_bias" else 1.0
    _require(role != "lora_bias" or "lora_up" in parts)
    updates.append(_whole(module.bias, role, parts[role], scale))
  return updates


def _roles_of(kind: str, roles: set[str]) -> set[str]:
  return {r for r in roles if r.startswith(kind)} - {"lora_bias"}


def _weight_update(
  name: str,
  change: Change,
  factor: float,
  parts: Tensors,
  module: Module,
  config: AdapterConfig,
) -> Update:
  """Of factors, which DoRA's magnitude may accompany."""
  target = module.weight
  _require(target is not None and fits(change.shape, target))
  magnitudes = sorted(_MAGNITUDES & set(parts))
  if not magnitudes:
    if config.is_dora:
      raise WeightsError(
        f"its config says use_dora, but {name} has no lora_magnitude_vector"
      )
    return Update(target, change, factor)
  (role,) = magnitudes
  needed = target.row.foreign_shape()
  _require(math.prod(change.shape) == math.prod(needed))
  magnitude = _magnitude(role, parts[role].astype(np.float32), needed)
  if (part := target.row.part) is not None:
    # Norms of inputs are of all parts, of which each is updated alone.
    _require(magnitude.axis == 0)
    magnitude = Magnitude(take(magnitude.norms.reshape(-1), part), 0)
  return Update(target, change, factor, magnitude)


def _magnitude(
  role: str, norms: np.ndarray, needed: tuple[int, ...]
) -> Magnitude:
  """LyCORIS has norms of outputs or of inputs, peft of outputs."""
  outputs, inputs = needed[:2]
  if norms.size == outputs and (
    role == "magnitude" or norms.shape[:1] == (outputs,)
  ):
    return Magnitude(norms, 0)
  _require(role == "dora_scale" and norms.shape[:2] == (1, inputs))
  _require(norms.size == inputs)
  return Magnitude(norms, 1)


def _whole(
  target: Target | None, role: str, array: np.ndarray, factor: float = 1.0
) -> Update:
  """Of a difference or a value that is stored whole."""
  change = stored(array)
  _require(target is not None and fits(change.shape, target))
  return Update(target, change, factor, is_value=role in _VALUES)


def _factor(
  name: str, change: Change, parts: Tensors, config: AdapterConfig
) -> float:
  """alpha / r, with alpha of a tensor, else of the config, else r.

  A LoKr of two whole factors has no r: LyCORIS then stores an alpha that means
  a factor of 1; peft has r in its config.

  Raises:
    WeightsError: alpha or r of the config is not a number of its kind.
  """
  if "alpha" in parts:
    _require(parts["alpha"].size == 1)
    alpha = float(parts["alpha"].reshape(()))
    return 1.0 if change.rank is None else alpha / change.rank
  alpha, stated = config.alpha_of(name), config.rank_of(name)
  rank = stated if change.rank is None else change.rank
  if stated not in (None, rank):
    logger.warning(
      f"the config of the LoRA says r={stated} for {name}, whose factors have "
      f"r={rank}, which is used"
    )
  if alpha is None or rank is None:
    return 1.0
  return alpha / rank**config.power


def _require(is_true: bool) -> None:
  if not is_true:
    raise ValueError("the tensors do not fit")
