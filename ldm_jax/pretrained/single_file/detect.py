"""Detects a single file's family and configs from its tensors."""

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from ldm_jax.diffusion.prediction import Prediction
from ldm_jax.errors import WeightsError
from ldm_jax.pretrained.configs import scheduler_config
from ldm_jax.pretrained.flux.detect_file import detect_flux
from ldm_jax.pretrained.flux.flux_shapes import FIRST as FLUX_FIRST
from ldm_jax.pretrained.mmdit.detect_file import detect_mmdit
from ldm_jax.pretrained.single_file import submodules
from ldm_jax.pretrained.single_file.detected import Detected
from ldm_jax.pretrained.single_file.families import FAMILIES, Family, family_of
from ldm_jax.pretrained.single_file.marks import (
  Marks,
  choose_prediction,
  choose_schedule,
  read_marks,
  schedule_of_buffers,
)
from ldm_jax.pretrained.single_file.submodules import (
  PartialConfig,
  Submodule,
  SubmoduleLocation,
)
from ldm_jax.pretrained.single_file.tensor_shapes import (
  Shape,
  Shapes,
  read_unet,
)

Read = Callable[[str], np.ndarray]


# Buffers, averages, and tensors that only training used.
_IGNORED = re.compile(
  r"(low_scale_model\.)?(betas|alphas_cumprod\w*|sqrt_\w+|log_one_minus\w+"
  r"|posterior_\w+|lvlb_weights|logvar|scale_factor)|denoiser\.sigmas"
  r"|model_ema\..*|depth_model\..*|v_pred|ztsnr|(.*\.)?position_ids"
  r"|(cond_stage_model|conditioner)\.(.*\.)?(logit_scale|text_projection)"
  r"(\.weight)?"
)
_SCALE = "scale_factor"
_OF_TWO_TEXTS = ("sdxl", "sdxl-inpainting", "sdxl-instruct-pix2pix")
_UNCONDITIONAL = ("ldm-unconditional", "ldm-churches")
_LISTED = 5  # names in a message
_EDM = ("edm_mean", "edm_std", "edm_vpred.sigma_max", "edm_vpred.sigma_min")

_OF_FOLDER = (
  "a part of a diffusers folder; give the folder, whose config.json says what "
  "it is"
)
# Parts of tensor names, and the kind of file that has them.
_OTHERS = {
  "lora_": "an adapter (LoRA), to be applied to a model",
  "control_model.": "a ControlNet",
  "input_hint_block.": "a ControlNet",
  "controlnet_blocks.": "a ControlNet of a transformer, which is not read",
  "double_blocks.": f"FLUX.1 without its tensor {FLUX_FIRST}, or another "
  "network of such blocks; needed is a whole file of FLUX.1",
  "joint_blocks.": "a part of Stable Diffusion 3's transformer",
  "single_transformer_blocks.": _OF_FOLDER,
  "transformer_blocks.0.attn.add_q_proj": _OF_FOLDER,
  "down_blocks.": _OF_FOLDER,
}

# diffusers and ComfyUI distinguish SD 2's eps and v models so: by the length of
# the base model's training, and by a bias that v-prediction moved away from 0.
_STEPS_OF_BASE = 875_000
_BIAS = "output_blocks.11.1.transformer_blocks.0.norm1.bias"
_BIAS_OF_V = 0.09


def detect(
  shapes: Mapping[str, Shape],
  *,
  read: Read | None = None,
  global_step: int | None = None,
  prediction: Prediction | None = None,
  config: Mapping[str, PartialConfig] | None = None,
  metadata: Mapping[str, str] | None = None,
) -> Detected:
  """What a single file holds, from the names and shapes of its tensors.

  Args:
    read: a tensor's values by its name; used for the scale of latents that
      some of LDM's files hold, and for one bias of SD 2.
    global_step: of training, as a .ckpt may hold it.
    prediction: what the U-Net predicts, if the caller knows.
    config: by a component's name, or "scheduler": keys of its config that
      override what the shapes and the family show.
    metadata: of a safetensors file; see `marks`.

  Raises:
    WeightsError: it is of no known family, or needs a key of `config`, which
      the message names.
  """
  overrides = config or {}
  for detect_transformer in (detect_mmdit, detect_flux):
    found = detect_transformer(shapes, prediction, overrides)
    if found is not None:
      return found
  return _detect_unet(
    shapes, prediction, overrides, read, global_step, metadata
  )


def _detect_unet(
  shapes: Mapping[str, Shape],
  prediction: Prediction | None,
  overrides: Mapping[str, PartialConfig],
  read: Read | None,
  global_step: int | None,
  metadata: Mapping[str, str] | None,
) -> Detected:
  """What a file of a U-Net, or of an autoencoder alone, holds."""
  unet = submodules.find(shapes, submodules.UNETS)
  vae = submodules.find(shapes, submodules.VAES)
  texts = [s for s in submodules.TEXTS if s.prefix + s.tensor in shapes]
  _check(shapes, [site for site in (unet, vae, *texts) if site is not None])
  get = lambda site: overrides.get(site.name, {})
  text_encoders = tuple(
    submodules.text_submodule(site, shapes, get(site)) for site in texts
  )
  if unet is None:
    return _single_vae(shapes, vae, overrides, text_encoders)
  module, inputs = read_unet(Shapes(shapes, unet.prefix))
  name = family_of(module, inputs, [site.kind for site in texts])
  warnings = _missing(name, vae, texts)
  of_scheduler = overrides.get("scheduler", {})
  marks = read_marks(shapes, metadata)
  configured = of_scheduler.get("prediction_type")
  configured = scheduler_config.PREDICTIONS.get(configured)
  prediction, said = choose_prediction(marks, prediction, configured)
  warnings += marks.warnings + said
  if prediction is None:
    prediction, guess = _prediction(name, shapes, read, global_step)
    warnings += guess
  name = "sd2-v" if (name, prediction) == ("sd2", "v") else name
  family = _scaled(FAMILIES[name], shapes, read)
  scheduler, said = _scheduler(
    family, shapes, read, (marks, prediction), of_scheduler
  )
  return Detected(
    name,
    submodules.unet_submodule(unet, shapes, family, get(unet)),
    vae and submodules.vae_submodule(vae, shapes, family, get(vae)),
    text_encoders,
    scheduler,
    warnings + said,
  )


def _check(shapes: Mapping[str, Shape], found: list[SubmoduleLocation]) -> None:
  """Raises WeightsError without U-Net and autoencoder, or for other tensors."""
  if not {"unet", "vae"} & {site.name for site in found}:
    for key, kind in _OTHERS.items():
      if any(key in name for name in shapes):
        raise WeightsError(f"{key} is in its tensors' names: this is {kind}")
    raise WeightsError(
      f"neither a U-Net nor an autoencoder of Stable Diffusion or LDM among "
      f"{_list(shapes)}"
    )
  if marks := [name for name in _EDM if name in shapes]:
    raise WeightsError(
      f"{_list(marks)}: the model was trained as EDM, which is not "
      "supported; expected one that predicts eps, v or x0"
    )
  prefixes = tuple(site.prefix for site in found)
  unknown = [
    name
    for name in shapes
    if not name.startswith(prefixes) and not _IGNORED.fullmatch(name)
  ]
  if unknown:
    raise WeightsError(
      f"of no network known here: {_list(unknown)}; if they are not used, "
      "remove them from the file"
    )


def _list(names: Collection[str]) -> str:
  """How many names there are, and the first of them."""
  first = sorted(names)[:_LISTED]
  more = ["..."] if len(names) > len(first) else []
  return f"{len(names)} tensors ({', '.join(first + more)})"


def _single_vae(
  shapes: Mapping[str, Shape],
  site: SubmoduleLocation,
  overrides: Mapping[str, PartialConfig],
  text_encoders: tuple[Submodule, ...],
) -> Detected:
  """An autoencoder alone, which does not hold the scale of its latents."""
  is_vq = f"{site.prefix}quantize.embedding.weight" in shapes
  family = FAMILIES["ldm-unconditional" if is_vq else "sd1"]
  own = overrides.get(site.name, {})
  vae, warning = submodules.lone_vae_submodule(site, shapes, family, own)
  warnings = (warning,) if warning else ()
  return Detected("vae", None, vae, text_encoders, None, warnings)


def _missing(
  name: str, vae: SubmoduleLocation | None, texts: list[SubmoduleLocation]
) -> tuple[str, ...]:
  """Warnings about components of a complete model that the file lacks."""
  warnings = []
  if vae is None:
    warnings.append(
      f"no autoencoder in the file: this {name} needs one; give it with "
      "vae=PATH (--vae)"
    )
  if not texts and name not in _UNCONDITIONAL:
    warnings.append(
      "no text encoder in the file: by the shapes of its U-Net it is taken to "
      f"be of family {name}; give one with text_encoder=[FOLDER] "
      "(--text_encoder), and tokenizer=FOLDER (--tokenizer)"
    )
  if len(texts) == 1 and name in _OF_TWO_TEXTS:
    warnings.append(
      f"of two text encoders only {texts[0].name} in the file; give the other "
      "with text_encoder=[FOLDER] (--text_encoder)"
    )
  return tuple(warnings)


def _prediction(
  name: str,
  shapes: Mapping[str, Shape],
  read: Read | None,
  global_step: int | None,
) -> tuple[Prediction, tuple[str, ...]]:
  """What the U-Net predicts, and a warning if that is a guess."""
  if name != "sd2":
    return FAMILIES[name].prediction, ()
  if global_step == _STEPS_OF_BASE:
    return "eps", ()
  bias = next((n for n in shapes if n.endswith(_BIAS)), None)
  if read is None or bias is None:
    guess, reason = "v", "most of SD 2 does"
  else:
    spread = float(np.std(np.asarray(read(bias), np.float32)))
    guess = "v" if spread > _BIAS_OF_V else "eps"
    reason = f"the spread of one bias is {spread:.3f}, v's is over {_BIAS_OF_V}"
  warning = (
    f"no tensor says what the U-Net predicts; taken to be {guess!r} ({reason}),"
    " set prediction= otherwise"
  )
  return guess, (warning,)


def _scaled(
  family: Family, shapes: Mapping[str, Shape], read: Read | None
) -> Family:
  """The family with the scale of latents that the file holds, if it does."""
  if _SCALE in shapes and read is not None:
    return family._replace(scale=float(np.asarray(read(_SCALE))))
  return family


def _scheduler(
  family: Family,
  shapes: Mapping[str, Shape],
  read: Read | None,
  marked: tuple[Marks, Prediction],
  overrides: PartialConfig,
) -> tuple[dict[str, Any], tuple[str, ...]]:
  """A scheduler_config.json, and what of it contradicts the file.

  Marks in the file override the family and a config; a config's betas override
  those of the file.
  """
  marks, prediction = marked
  schedule, of_buffers = schedule_of_buffers(shapes, read, family.schedule)
  schedule, overrides, said = choose_schedule(
    marks, schedule, prediction, overrides
  )
  written = scheduler_config.schedule_config(schedule, prediction)
  predicted = {"prediction_type": written["prediction_type"]}
  config = written | dict(overrides) | predicted
  found, _ = scheduler_config.schedule(config)
  if of_buffers and found != schedule:
    of_buffers = (
      f"the config's scheduler is used: {found}; the file's own betas are of "
      f"{schedule}",
    )
  if found.has_zero_terminal_snr and prediction == "eps":
    raise WeightsError(
      "its schedule ends at pure noise, where a U-Net that predicts 'eps' "
      "gives no image; set prediction='v' (--prediction v), or take its betas "
      "out of the file"
    )
  return config, of_buffers + said
