"""What a single file says of its own training: prediction and noise schedule.

Tools mark files by empty tensors ("v_pred", "ztsnr"), by metadata (ModelSpec's
"modelspec.prediction_type", sd-scripts' "ss_v_parameterization") and by the
buffers of CompVis's code ("betas", "alphas_cumprod").
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from ldm_jax.diffusion.prediction import Prediction
from ldm_jax.diffusion.schedule import Schedule
from ldm_jax.errors import WeightsError

Read = Callable[[str], np.ndarray]

_PREDICTIONS: dict[str, Prediction] = {
  "epsilon": "eps",
  "eps": "eps",
  "v": "v",
  "v_prediction": "v",
  "sample": "x0",
  "x0": "x0",
}
_SPEC, _SCRIPTS = "modelspec.prediction_type", "ss_v_parameterization"
_SCRIPTS_SNR = "ss_zero_terminal_snr"
_TRUE = ("true", "1")
_TOLERANCE = 2e-3  # of alpha-bar, relative


class Marks(NamedTuple):
  """What a file says.

  Attributes:
    prediction: what its U-Net predicts, or None.
    source: the mark that says so.
    zero_terminal_snr: the mark for a schedule that ends at pure noise, or None.
    warnings: marks that contradict each other or are not known.
  """

  prediction: Prediction | None = None
  source: str = ""
  zero_terminal_snr: str | None = None
  warnings: tuple[str, ...] = ()


def read_marks(
  names: Collection[str], metadata: Mapping[str, str] | None = None
) -> Marks:
  """The marks among a file's tensors and metadata; a tensor goes first."""
  metadata = metadata or {}
  found: list[tuple[str, Prediction]] = []
  warnings = []
  if "v_pred" in names:
    found.append(("its tensor v_pred", "v"))
  if (value := metadata.get(_SPEC)) is not None:
    known = _PREDICTIONS.get(value.strip().lower())
    if known is None:
      warnings.append(
        f"{_SPEC}={value[:40]!r} in the file's metadata is not known, and is "
        f"not used; known are {', '.join(_PREDICTIONS)}"
      )
    else:
      found.append((f"its metadata {_SPEC}={value}", known))
  if (value := metadata.get(_SCRIPTS)) is not None:
    is_v = value.strip().lower() in _TRUE
    found.append(
      (f"its metadata {_SCRIPTS}={value[:10]}", "v" if is_v else "eps")
    )
  snr = "its tensor ztsnr" if "ztsnr" in names else None
  if metadata.get(_SCRIPTS_SNR, "").strip().lower() in _TRUE:
    snr = snr or f"its metadata {_SCRIPTS_SNR}"
  if not found:
    return Marks(zero_terminal_snr=snr, warnings=tuple(warnings))
  source, prediction = found[0]
  warnings += [
    f"{other} says that the U-Net predicts {value!r}, {source} {prediction!r}; "
    f"{prediction!r} is used, set prediction= otherwise (--prediction)"
    for other, value in found[1:]
    if value != prediction
  ]
  return Marks(prediction, source, snr, tuple(warnings))


def choose_prediction(
  marks: Marks, asked: Prediction | None, configured: Prediction | None
) -> tuple[Prediction | None, tuple[str, ...]]:
  """The prediction that holds, and what contradicts it.

  The caller goes first, then the file's own marks, then a config.
  """
  chosen = asked or marks.prediction or configured
  winner = "prediction=" if asked else marks.source
  warnings = []
  if asked and marks.prediction not in (None, chosen):
    warnings.append((marks.source, marks.prediction))
  is_said = asked is not None and marks.prediction is not None
  if configured not in (None, chosen) and not is_said:
    warnings.append(("the config's scheduler", configured))
  return chosen, tuple(
    f"{source} says that the U-Net predicts {value!r}, {winner} {chosen!r}; "
    f"{chosen!r} is used"
    for source, value in warnings
  )


def choose_schedule(
  marks: Marks,
  own: Schedule,
  prediction: Prediction,
  config: Mapping[str, Any],
) -> tuple[Schedule, dict[str, Any], tuple[str, ...]]:
  """The schedule with the mark of zero terminal SNR, and a config's other keys.

  Args:
    own: the file's schedule by its buffers or its family.
    config: keys of scheduler_config.json.

  Returns:
    (schedule, keys of the config that hold, what was contradicted).
  """
  config, key = dict(config), "rescale_betas_zero_snr"
  mark = marks.zero_terminal_snr
  if mark is None:
    return own, config, ()
  if prediction == "eps":
    warning = (
      f"{mark} asks for zero terminal SNR, where a U-Net that predicts 'eps' "
      "gives no image; it is not used"
    )
    return own, config, (warning,)
  warnings = ()
  if key in config and not config.pop(key):
    warnings = (
      f"{mark} asks for zero terminal SNR, the config says {key}=false; the "
      "file's mark is used",
    )
  return dataclasses.replace(own, zero_terminal_snr=True), config, warnings


def schedule_of_buffers(
  names: Collection[str], read: Read | None, family: Schedule
) -> tuple[Schedule, tuple[str, ...]]:
  """The schedule of a file's "alphas_cumprod" or "betas"; the family's without.

  Raises:
    WeightsError: they hold no table of finite numbers.
  """
  name = next((n for n in ("alphas_cumprod", "betas") if n in names), None)
  if read is None or name is None:
    return family, ()
  stored = np.asarray(read(name))
  values = stored.astype(np.float64).reshape(-1)
  if values.size < 2 or not np.isfinite(values).all():
    raise WeightsError(
      f"{name} holds {values.size} values, or some that are not finite; needed "
      "is a table of all times"
    )
  alpha_bar = np.cumprod(1 - values) if name == "betas" else values
  half = 2 * float(ml_dtypes.finfo(stored.dtype).eps)
  is_same = lambda schedule: _is_same(schedule.alpha_bar, alpha_bar, half)
  if is_same(family):
    return family, ()
  found = next(filter(is_same, _candidates(family, alpha_bar)), None)
  if found is None:
    return family, (
      f"the file's {name} are of no schedule known here, and are not used: the "
      f"betas are {family.kind} from {family.start:.6g} to {family.end:.6g}; "
      "name another with a folder of configs (--config)",
    )
  snr = " and zero terminal SNR" if found.zero_terminal_snr else ""
  return found, (
    f"the file's {name} are used: betas {found.kind} from {found.start:.6g} to "
    f"{found.end:.6g} in {found.steps} steps{snr}",
  )


def _candidates(family: Schedule, alpha_bar: np.ndarray) -> list[Schedule]:
  """Schedules that a table could be of, by its first and last betas."""
  steps = alpha_bar.size
  start = float(1 - alpha_bar[0])
  end = float(1 - alpha_bar[-1] / alpha_bar[-2]) if alpha_bar[-2] > 0 else 1.0
  found = [
    dataclasses.replace(family, zero_terminal_snr=True, steps=steps),
    Schedule("cosine", steps=steps),
    Schedule("cosine", steps=steps, zero_terminal_snr=True),
  ]
  if 0 < start <= end < 1:
    # Files round their tables: the usual ends have few digits.
    start, end = (float(f"{x:.4g}") for x in (start, end))
    found = [
      Schedule(kind, start, end, steps) for kind in ("scaled_linear", "linear")
    ] + found
  return found


def _is_same(first: np.ndarray, second: np.ndarray, rounding: float) -> bool:
  """Whether two tables of alpha-bar are equal but for their rounding."""
  if first.shape != second.shape:
    return False
  relative = max(_TOLERANCE, rounding)
  return bool(np.allclose(first, second, rtol=relative, atol=rounding / 50))
