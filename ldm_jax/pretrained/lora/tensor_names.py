"""Which module a tensor of a LoRA file changes, and its role there."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ldm_jax.errors import WeightsError

# A peft state dict may have the adapter's name within its keys.
_ADAPTER = r"(\.(?P<adapter>(?!weight$|bias$)[^.]+))?"
# Ends of names: kohya's, peft's, LyCORIS', and those of diffusers before it
# used peft. The groups `role` of the last patterns are the roles themselves.
_PATTERNS = {
  "lora_down": rf"(lora_down|lora_A{_ADAPTER}"
  r"|((lora|lora_linear_layer)\.)?down)\.weight",
  "lora_up": rf"(lora_up|lora_B{_ADAPTER}"
  r"|((lora|lora_linear_layer)\.)?up)\.weight",
  "lora_mid": r"lora_mid\.weight",
  "lora_bias": rf"(lora_up|lora_B{_ADAPTER})\.bias",
  "alpha": r"alpha",
  "dora_scale": r"dora_scale",
  "magnitude": rf"lora_magnitude_vector{_ADAPTER}(\.weight)?",
  "loha": rf"(?P<role>hada_(w[12]_[ab]|t[12])){_ADAPTER}",
  "lokr": rf"(?P<role>lokr_(w[12](_[ab])?|t2)){_ADAPTER}",
  "difference": r"(?P<role>diff|diff_b|w_norm|b_norm)",
  # Whole parameters, which peft saves next to the factors.
  "value": r"(base_layer\.|modules_to_save\.[^.]+\.)?(?P<role>weight|bias)",
}
_ROLES = {
  kind: re.compile(rf"\.{pattern}$") for kind, pattern in _PATTERNS.items()
}
_PEFT = "base_model.model."

# Adapters and parameters that are not read, by patterns of tensors' names.
_UNSUPPORTED = {
  "OFT": r"b?oft_\w+",
  "GLoRA": r"[ab][12]|bm",
  "IA3": r"on_input|ia3_l",
  "LoKr with a core for its first factor": r"lokr_t1",
  "LoRA of embeddings": r"lora_embedding_[AB]",
  "set of weights that replace the model's": r"set_weight",
  "LoRA that enlarges the model's weights": r"reshape_weight",
  "VeRA": r"vera_\w+",
  "AdaLoRA": r"lora_E|ranknum",
}
BUNDLE = "bundle_emb."
_BUNDLED = re.compile(
  r"bundle_emb\.(?P<token>.+?)\."
  r"(string_to_param\.(?P<inner>.+)|(?P<key>clip_l|clip_g|emb_params))",
  re.DOTALL,
)


class TensorName(NamedTuple):
  """What the name of a tensor says.

  Attributes:
    module: the name of the module that it changes.
    role: None if the name has none.
    adapter: peft's name of the adapter; None if it is not in the name.
  """

  module: str
  role: str | None
  adapter: str | None = None


def parse_name(name: str) -> TensorName:
  """The parts of a tensor's name."""
  for role, pattern in _ROLES.items():
    if match := pattern.search(name):
      groups = match.groupdict()
      module = name[: match.start()].replace(_PEFT, "", 1)
      return TensorName(
        module, groups.get("role") or role, groups.get("adapter")
      )
  return TensorName(name, None)


def refuse_unsupported(names: Iterable[str]) -> None:
  """Checks that there is one adapter, of supported kinds.

  Raises:
    WeightsError: a tensor is of another kind, or there are two adapters.
  """
  adapters = {}
  for name in names:
    for kind, pattern in _UNSUPPORTED.items():
      if re.search(rf"\.({pattern})(\.|$)", name):
        raise WeightsError(
          f"{name} is of a {kind}, which cannot be merged here; needed are the "
          "tensors of a LoRA, LoHa, LoKr or DoRA, or differences of weights"
        )
    if adapter := parse_name(name).adapter:
      adapters.setdefault(adapter, name)
  if len(adapters) > 1:
    raise WeightsError(
      f"it holds {len(adapters)} adapters ({', '.join(adapters)}); one is "
      "needed: save each to a file of its own"
    )


def split_bundle(
  tensors: Mapping[str, np.ndarray],
) -> tuple[dict[str, np.ndarray], dict[str, dict[str, Any]]]:
  """The tensors of an adapter, and embeddings bundled with it, by token.

  The latter are named bundle_emb.TOKEN.KEY, with the keys that files of
  textual inversion have; a token may have dots.

  Raises:
    WeightsError: a name has no token or no key.
  """
  rest, found = {}, {}
  for name, tensor in tensors.items():
    if not name.startswith(BUNDLE):
      rest[name] = tensor
      continue
    match = _BUNDLED.fullmatch(name)
    if match is None:
      raise WeightsError(
        f"{name} is no embedding; needed is {BUNDLE}TOKEN.KEY, with one of the "
        "keys clip_l, clip_g, emb_params and string_to_param.*"
      )
    entry = found.setdefault(match["token"], {})
    if match["inner"]:
      entry.setdefault("string_to_param", {})[match["inner"]] = tensor
    else:
      entry[match["key"]] = tensor
  return rest, found
