"""The config.json of diffusers' DiTTransformer2DModel, to and from `DiT`."""

from typing import Any

from ldm_jax.errors import ConfigError
from ldm_jax.fields.limits import INT_MAX
from ldm_jax.nn.conditioners.embedders import ClassEmbedder
from ldm_jax.nn.dit.dit import DiT
from ldm_jax.pretrained.configs.strict_config import (
  DIFFUSERS,
  Config,
  Schema,
  class_name,
  is_count,
  read,
  refusal,
)
from ldm_jax.pretrained.configs.unet_reader import Inputs
from ldm_jax.pretrained.configs.value_types import MOST_LAYERS

DIT = Schema(
  "DiTTransformer2DModel",
  defaults={
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": 0,  # null: in_channels
    "num_layers": 28,
    "sample_size": 32,
    "patch_size": 2,
    "num_embeds_ada_norm": 1000,
    "norm_eps": 1e-5,
  },
  demands={
    "dropout": (0.0,),
    "attention_bias": (True,),
    "activation_fn": ("gelu-approximate",),
    "norm_type": ("ada_norm_zero",),
    "norm_elementwise_affine": (False,),
    "attention_type": ("default",),
  },
  passive=("norm_num_groups", "upcast_attention"),
)
# The class of the first published folders, facebook/DiT-XL-2-256's.
FIRST_KIND = "Transformer2DModel"
LABELS = "DiTLabels"

# Keys of diffusers do not say them. It ignores those that begin so, and
# computes sinusoids of the time with a shift of 1.
_SHIFT, _FLOW = "_frequency_shift", "_flow_steps"


def dit(config: Config) -> DiT:
  """The network of a DiTTransformer2DModel, without its table of labels.

  The frequencies of the time are diffusers' (frequency_shift=1) unless the
  config says otherwise in a key of this package's own.

  Raises:
    ConfigError: a key asks for something that `DiT` does not support.
  """
  values = _read(config)
  inputs, outputs = values["in_channels"], values["out_channels"]
  outputs = outputs or inputs
  if outputs not in (inputs, 2 * inputs):
    needed = f"{inputs}, or {2 * inputs} with learned variance"
    raise refusal(DIT.kind, "out_channels", outputs, needed)
  patch = values["patch_size"]
  if values["sample_size"] % patch:
    needed = f"a multiple of patch_size={patch}"
    raise refusal(DIT.kind, "sample_size", values["sample_size"], needed)
  heads = values["num_attention_heads"]
  try:
    return DiT(
      inputs,
      heads * values["attention_head_dim"],
      values["num_layers"],
      heads,
      patch,
      learns_variance=outputs != inputs,
      flow_steps=config.get(_FLOW),
      grid=values["sample_size"] // patch,
      mlp_epsilon=float(values["norm_eps"]),
      frequency_shift=config.get(_SHIFT, 1),
    )
  except ValueError as error:
    raise ConfigError(f"{DIT.kind}: {error}") from error


def inputs(config: Config) -> Inputs:
  """The inputs of the config's network.

  Raises:
    ConfigError: as `dit`.
  """
  values = _read(config)
  width = values["num_attention_heads"] * values["attention_head_dim"]
  return Inputs(values["in_channels"], values["sample_size"], vector=width)


def _read(config: Config) -> dict[str, Any]:
  """The schema's values, all counts checked."""
  class_name(config, (DIT.kind, FIRST_KIND))
  values = read(config, DIT)
  for key, default in DIT.defaults.items():
    is_null = key == "out_channels" and not values[key]
    if isinstance(default, int) and not is_null and not is_count(values[key]):
      raise refusal(DIT.kind, key, values[key], "a number above 0")
  if values["num_layers"] > MOST_LAYERS:
    needed = f"at most {MOST_LAYERS}"
    raise refusal(DIT.kind, "num_layers", values["num_layers"], needed)
  if not values["norm_eps"] > 0:
    raise refusal(DIT.kind, "norm_eps", values["norm_eps"], "above 0")
  if config.get(_SHIFT, 1) not in (0, 1):
    raise refusal(DIT.kind, _SHIFT, config[_SHIFT], (0, 1))
  steps = config.get(_FLOW)
  if steps is not None and not (is_count(steps) and 2 <= steps <= INT_MAX):
    raise refusal(DIT.kind, _FLOW, steps, "2 or more, or null")
  return values


def labels_config(config: Config) -> dict[str, Any]:
  """What stands for the table of labels inside a config's network."""
  values = _read(config)
  width = values["num_attention_heads"] * values["attention_head_dim"]
  classes = values["num_embeds_ada_norm"]
  return {"_class_name": LABELS, "classes": classes, "width": width}


def labels(config: Config) -> ClassEmbedder:
  """The conditioner of `labels_config`; its last row is the null class."""
  class_name(config, (LABELS,))
  return ClassEmbedder(
    config["classes"], config["width"], joins="vector", deviation=0.02
  )


def dit_config(dit: DiT, classes: int, side: int) -> dict[str, Any]:
  """The config.json from which diffusers makes this network.

  Args:
    classes: of the conditioner.
    side: of the latents, where the network does not say it.

  Raises:
    ConfigError: diffusers has no class that computes the same.
  """
  needed = {
    "positions": "sincos",
    "registers": 0,
    "norm": "layer",
    "mlp": "gelu",
    "mlp_width": 4 * dit.width,
    "is_qk_normed": False,
    "flow_steps": None,
  }
  for name, value in needed.items():
    if getattr(dit, name) != value:
      raise ConfigError(
        f"diffusers' {DIT.kind} has no {name}={getattr(dit, name)!r}; needed: "
        f"{value!r}"
      )
  config = {
    "_class_name": DIT.kind,
    "_diffusers_version": DIFFUSERS,
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "attention_head_dim": dit.width // dit.heads,
    "dropout": 0.0,
    "in_channels": dit.out_channels,
    "norm_elementwise_affine": False,
    "norm_eps": dit.mlp_epsilon,
    "norm_num_groups": 32,
    "norm_type": "ada_norm_zero",
    "num_attention_heads": dit.heads,
    "num_embeds_ada_norm": classes,
    "num_layers": dit.depth,
    "out_channels": dit.out_channels * (2 if dit.learns_variance else 1),
    "patch_size": dit.patch,
    "sample_size": side if dit.grid is None else dit.grid * dit.patch,
    "upcast_attention": False,
  }
  own = {} if dit.frequency_shift == 1 else {_SHIFT: dit.frequency_shift}
  return config | own


def released_config(
  dit: DiT, classes: int, flow_steps: int | None
) -> dict[str, Any]:
  """A config of a released file: its own frequencies, and SiT's time."""
  config = dit_config(dit, classes, 0)
  return config if flow_steps is None else config | {_FLOW: flow_steps}
