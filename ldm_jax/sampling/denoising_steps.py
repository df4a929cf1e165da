"""A sampler's program in pieces: the compiled function, and progress reports.

A piece of any length is padded with inactive rows to the length that is
compiled, so that progress after every step costs no compilation.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ldm_jax.diffusion import samplers
from ldm_jax.diffusion.guidance import (
  Guidance,
  with_classifier_guidance,
)
from ldm_jax.diffusion.prediction import Denoiser, with_thresholding
from ldm_jax.latent_diffusion import LatentDiffusion, Parameters
from ldm_jax.nn.conditioners.embedders import Condition
from ldm_jax.nn.encoder_unet import EncoderUNet
from ldm_jax.runtime.devices.activation_sharding import constrain_activations
from ldm_jax.runtime.devices.sharding import Sharding
from ldm_jax.runtime.program_cache import shared_by_value
from ldm_jax.sampling.inpainting import KnownRegion
from ldm_jax.sampling.sampling_config import Conditioning
from ldm_jax.sampling.tiling import Crop, windowed


class StepInputs(NamedTuple):
  """The inputs of a piece of the program, all of them traced.

  Attributes:
    negative: None where guidance is off.
    known: the region that inpainting keeps, or None.
    classifier: its parameters, the classes [b], and its scale; or None.
  """

  positive: Condition
  negative: Condition | None
  guidance: Guidance
  threshold: tuple[float, float] | None
  known: KnownRegion | None
  classifier: tuple[Any, Array, float] | None = None


def weighted_condition(
  model: LatentDiffusion, params: Parameters, side: Conditioning
) -> Condition:
  """The condition, with the weights of its prompts if it has any.

  z = z_empty + weight (z - z_empty), as ComfyUI computes it.
  """
  encode = lambda raw: model.condition(params, raw, side.is_null)
  condition = encode(side.raw)
  if side.weights is None:
    return condition
  empty = encode(side.empty).context
  weights = side.weights[..., None]
  context = empty + weights * (condition.context - empty)
  return condition.replace(context=context)


def run_piece(
  model: LatentDiffusion,
  classifier: EncoderUNet | None,
  params: Parameters,
  state: Array,
  piece: samplers.Row,
  keys: Array,
  step: StepInputs,
  *,
  window: int | None,
) -> tuple[Array, Array]:
  """Follows the active rows of a piece; also returns how many there were.

  Args:
    state: registers of the sampler, [r b h w c].
    keys: one per image.
    window: side of windows in latents, or None; the one static argument.
  """

  def make(crop: Crop = lambda array: array) -> Denoiser:
    cut = lambda condition: condition.replace(
      concat=jax.tree.map(crop, condition.concat),
      hint=jax.tree.map(crop, condition.hint),
    )
    positive = cut(step.positive)
    if step.negative is None:
      return model.denoiser(params, positive)
    return model.guided_denoiser(
      params, cut(step.negative), positive, step.guidance
    )

  size = state.shape[2:4]
  denoise = make() if window is None else windowed(make, size, window)
  if step.classifier is not None:
    variables, labels, scale = step.classifier
    logits = functools.partial(classifier.apply, variables)
    denoise = with_classifier_guidance(denoise, logits, labels, scale)
  if step.threshold is not None:
    denoise = with_thresholding(denoise, *step.threshold)
  mend = (lambda x, level: x) if step.known is None else step.known.mend
  state = samplers.run(denoise, state, piece, keys, mend)
  return state, piece.is_active.sum()


class Progress(NamedTuple):
  """Progress reports for the caller of `generate`.

  Attributes:
    advance: called with the number of network calls just finished, and with
      the latents of x0, [b h w c], if `with_x0`, else with None.
    length: network calls between two calls of `advance`, at most
      samplers.CHUNK_ROWS.
  """

  advance: Callable[[int, Array | None], None]
  length: int = samplers.CHUNK_ROWS
  with_x0: bool = False


def pieces(program: samplers.Row, length: int) -> Iterator[samplers.Row]:
  """The table, `length` rows at a time, each padded to CHUNK_ROWS."""
  length = min(length, samplers.CHUNK_ROWS)
  for part in samplers.split_table(program, length):
    (padded,) = samplers.split_table(part)
    yield padded


def add_x0_register(
  state: Float[Array, "r b h w c"],
) -> Float[Array, "r2 b h w c"]:
  """The registers and one more, in which `keep_x0` leaves x0."""
  return jnp.concatenate([state, jnp.zeros_like(state[:1])])


def keep_x0(piece: samplers.Row) -> samplers.Row:
  """The piece for `add_x0_register`: each row also stores its x0.

  A row mixes the registers, x0, eps and noise linearly; see
  diffusion/samplers/sampler_table.py.
  """
  length, registers, basis = piece.mix.shape
  mix = np.zeros((length, registers + 1, basis + 1), piece.mix.dtype)
  mix[:, :-1, :registers] = piece.mix[:, :, :registers]
  mix[:, :-1, registers + 1 :] = piece.mix[:, :, registers:]
  mix[:, -1, registers + 1] = 1  # x0 comes first after the registers
  return piece._replace(mix=mix)


def report(
  progress: Progress | None,
  waiting: list[tuple[Array, Array | None]],
  keep: int,
) -> None:
  """Reports all but the last `keep` of the finished pieces, in order.

  Args:
    waiting: of each piece the number of its active rows, and x0 or None.
  """
  while len(waiting) > keep:
    done, x0 = waiting.pop(0)
    progress.advance(int(done), x0)


@shared_by_value
def programs(
  model: LatentDiffusion, classifier: EncoderUNet | None, sharding: Sharding
) -> tuple[Callable, Callable]:
  """Jitted `weighted_condition` and `run_piece`; equal models share them."""
  condition = functools.partial(weighted_condition, model)
  piece = functools.partial(run_piece, model, classifier)
  return (
    jax.jit(constrain_activations(condition, sharding)),
    jax.jit(
      constrain_activations(piece, sharding),
      static_argnames="window",
      donate_argnums=1,
    ),
  )
