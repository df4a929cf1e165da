"""DiT and SiT in the files that their authors released."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ldm_jax.diffusion.prediction import Prediction
from ldm_jax.diffusion.schedule import Schedule
from ldm_jax.errors import ConfigError, WeightsError
from ldm_jax.latent_diffusion import LatentDiffusion, Parameters
from ldm_jax.nn.dit.dit import SIZES, DiT
from ldm_jax.nn.dit.positions import sincos_positions
from ldm_jax.pretrained.configs.scheduler_config import schedule_config
from ldm_jax.pretrained.dit.dit_config import dit_config, released_config
from ldm_jax.pretrained.dit.folder import label_embedder
from ldm_jax.pretrained.networks import ForeignNetwork
from ldm_jax.weights.lazy_tensors import LazyTensor
from ldm_jax.weights.naming import convert
from ldm_jax.weights.naming.convert_lazily import revert_lazily
from ldm_jax.weights.naming.parameter_names import name_table

SCHEDULE = Schedule("linear", start=1e-4, end=0.02)  # of DiT
FLOW_STEPS = 1000  # times of the schedule on which a SiT is sampled here
_HEADS = {width: heads for width, _, heads in SIZES.values()}
_NAMES = ("x_embedder.proj.weight", "t_embedder.mlp.0.weight", "pos_embed")
_LAST, _LABELS = (
  "final_layer.linear.weight",
  "y_embedder.embedding_table.weight",
)


def check_released(model: LatentDiffusion) -> None:
  """Raises ConfigError for a model that a released file cannot hold.

  Such a file says nothing of the process, of heads or of times.
  """
  unet = model.unet
  label_embedder(model)
  dit_config(unet.clone(flow_steps=None), 1, 0)  # of the published kind
  needed = {
    "heads": _HEADS.get(unet.width, unet.heads),
    "frequency_shift": 0,
    "mlp_epsilon": 1e-6,
  }
  for name, value in needed.items():
    if getattr(unet, name) != value:
      raise ConfigError(
        f"a released file of a DiT cannot say {name}={getattr(unet, name)}, "
        f"only {value}; write a folder instead"
      )
  is_flow = unet.flow_steps is not None
  schedule = Schedule("rectified_flow", steps=FLOW_STEPS)
  process = (schedule, "flow") if is_flow else (SCHEDULE, "eps")
  if (model.schedule, model.prediction) != process:
    raise ConfigError(
      f"a released file of a {'SiT' if is_flow else 'DiT'} cannot say "
      f"{model.schedule} and prediction {model.prediction!r}, only "
      f"{process[0]} and {process[1]!r}; write a folder instead"
    )


def released_tensors(
  model: LatentDiffusion, params: Parameters, side: int, dtype: np.dtype
) -> dict[str, LazyTensor | np.ndarray]:
  """The transformer under its authors' names, labels and positions included.

  Args:
    side: of the latents, where the network does not say it.

  Raises:
    ConfigError: as `check_released`.
  """
  check_released(model)
  labels = params.conditioners[label_embedder(model).input_key]["params"]
  tensors = {}
  for kind, own in (("dit", params.unet["params"]), ("dit_labels", labels)):
    table = name_table(kind, "compvis", convert.shapes(own))
    tensors |= revert_lazily(table, own, dtype)
  grid = model.unet.grid or side // model.unet.patch
  positions = sincos_positions((grid, grid), model.unet.width, None)
  return tensors | {"pos_embed": np.asarray(positions, dtype)[None]}


class ReleasedDiT(NamedTuple):
  """What a released file holds, and what it does not say.

  Attributes:
    family: "dit" or "sit".
    scheduler: scheduler_config.json of DiT; None of a SiT.
  """

  network: ForeignNetwork
  family: str
  scheduler: dict[str, Any] | None
  warnings: tuple[str, ...]


def released_dit(
  path: str,
  tensors: Mapping[str, np.ndarray],
  prediction: Prediction | None,
  config: Mapping[str, Mapping[str, Any]],
) -> ReleasedDiT | None:
  """The DiT of a file with its authors' names; None if it is of another kind.

  Files of DiT and SiT have the same names and shapes: prediction "flow" takes
  it for a SiT, and None for a DiT, with a line that says so. They hold no
  autoencoder.

  Args:
    config: keys of the network's config.json under "unet", of the scheduler's
      under "scheduler", that override what the shapes show.

  Raises:
    WeightsError: its tensors do not fit together, it is of no published width
      and config does not give the number of heads, or predicts something else.
  """
  if not all(name in tensors for name in (*_NAMES, _LAST, _LABELS)):
    return None
  if prediction not in (None, "eps", "flow"):
    raise WeightsError(
      f"{path}: a DiT predicts 'eps' and a SiT 'flow', not {prediction!r}"
    )
  is_flow = prediction == "flow"
  own = dict(config.get("unet", {}))
  found = _config(path, tensors, own.get("num_attention_heads"), is_flow) | own
  network = ForeignNetwork(found, tensors, "dit", "compvis", path)
  scheduler = None
  if not is_flow:
    scheduler = schedule_config(SCHEDULE, "eps") | {"set_alpha_to_one": True}
    scheduler |= {"steps_offset": 0} | dict(config.get("scheduler", {}))
  return ReleasedDiT(
    network, "sit" if is_flow else "dit", scheduler, _warnings(prediction)
  )


def _warnings(prediction: Prediction | None) -> tuple[str, ...]:
  said = (
    "no autoencoder in the file: DiT and SiT take Stable Diffusion's "
    "(sd-vae-ft-ema); give it with vae=PATH (--vae)",
  )
  if prediction is not None:
    return said
  return (
    *said,
    "no tensor says whether it is a DiT or a SiT; taken to be a DiT, set "
    "prediction='flow' (--prediction flow) for a SiT",
  )


def _config(
  path: str, tensors: Mapping[str, np.ndarray], heads: Any, is_flow: bool
) -> dict[str, Any]:
  """The config that the shapes show."""
  names = (_NAMES[0], "pos_embed", _LAST, _LABELS)
  kernel, positions, last, labels = (np.shape(tensors[n]) for n in names)
  depth = 0
  while f"blocks.{depth}.attn.qkv.weight" in tensors:
    depth += 1
  ranks = [len(shape) for shape in (kernel, positions, last, labels)]
  is_dit = ranks == [4, 3, 2, 2] and depth > 0 and min(*kernel, *labels) > 0
  width, channels, patch, _ = kernel if is_dit else (0, 0, 0, 0)
  outputs = [count * patch**2 * channels for count in (1, 2)]
  if not is_dit or last[0] not in outputs:
    raise WeightsError(
      f"{path}: {', '.join(names)} of shapes {kernel}, {positions}, {last}, "
      f"{labels} and {depth} blocks are not those of a DiT"
    )
  heads = heads or _HEADS.get(width)
  if type(heads) is not int or heads < 1 or width % heads:
    raise WeightsError(
      f"{path}: {heads} heads for a DiT of width {width}; no published one is "
      "so wide: give its number of heads as "
      'config={"unet": {"num_attention_heads": ...}}'
    )
  side = max(1, round(positions[1] ** 0.5))
  module = DiT(
    channels,
    width,
    depth,
    heads,
    patch,
    learns_variance=last[0] == outputs[1],
    grid=side,
  )
  flow_steps = FLOW_STEPS if is_flow else None
  return released_config(module, labels[0] - 1, flow_steps)
