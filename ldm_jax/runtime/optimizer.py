"""Optimizers, the moving average of parameters, gradient accumulation."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from ldm_jax.fields.limits import (
  Below1,
  Count,
  Natural,
  NonNegative,
  Positive,
  check_limits,
)
from ldm_jax.runtime import muon
from ldm_jax.runtime.skip_updates import skip_bad_updates


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """AdamW (Loshchilov and Hutter 2019) with warm-up; torch's defaults.

  Attributes:
    rate: learning rate after warm-up. LDM's published base rates are per
      example: multiply them by the batch.
    betas: of the two moments; LDM's first stage uses (0.5, 0.9).
    weight_decay: decoupled, on everything but the tables that training leaves
      as they are, whose names begin with `fixed_`; 0 is plain Adam.
    warmup: steps over which the rate rises linearly from 0.
    decay: how the rate changes after warm-up: "constant", or "cosine" to
      `decay_to` times the rate at `decay_steps`.
    clip: largest global norm of a gradient, or None.
    spikes: skip updates whose gradient norm lies more than so many standard
      deviations above the mean of the last 128, or None.
    patience: how many updates in a row may be skipped, for spikes or because
      their gradient is not finite, before the run ends.
    muon: learning rate of Muon (Jordan et al. 2024) for the kernels of all but
      the first and the last convolution, with updates as long as AdamW's (Liu
      et al. 2025, section 2.2); the rest is updated by AdamW with Nesterov's
      momentum (Dozat 2016), as in optax. None is AdamW for all.
  """

  rate: Positive = 1e-4
  betas: tuple[Below1, Below1] = (0.9, 0.999)
  epsilon: NonNegative = 1e-8
  weight_decay: NonNegative = 0.01
  warmup: Natural = 0
  decay: Literal["constant", "cosine"] = "constant"
  decay_steps: Natural = 0
  decay_to: NonNegative = 0.0
  clip: Positive | None = None
  spikes: Positive | None = None
  patience: Count = 10
  muon: Positive | None = None

  def __post_init__(self):
    check_limits(self)
    if self.decay == "cosine" and self.decay_steps <= self.warmup:
      raise ValueError(
        f"decay='cosine' ends at decay_steps, got {self.decay_steps}; give "
        f"more than the warm-up's {self.warmup}, usually the run's steps"
      )

  def schedule(self) -> optax.Schedule:
    """The learning rate as a function of the number of updates."""
    return self._schedule(self.rate)

  def current_rate(self, state: Any) -> jax.Array:
    """The learning rate of the update that follows a state of `build`.

    Skipped updates do not count.
    """
    (_, count), *_ = optax.tree.get_all_with_path(state.inner, "count")
    return jnp.asarray(self.schedule()(count), jnp.float32)

  def _schedule(self, rate: float) -> optax.Schedule:
    if self.decay == "cosine":
      return optax.warmup_cosine_decay_schedule(
        0.0, rate, self.warmup, self.decay_steps, self.decay_to * rate
      )
    return optax.join_schedules(
      [
        optax.linear_schedule(0.0, rate, max(1, self.warmup)),
        optax.constant_schedule(rate),
      ],
      [self.warmup],
    )

  def build(self) -> optax.GradientTransformation:
    """The optax transformation that the fields describe."""
    inner = self._adamw() if self.muon is None else self._muon()
    if self.clip is not None:
      inner = optax.chain(optax.clip_by_global_norm(self.clip), inner)
    inner = hold_fixed(inner)
    return skip_bad_updates(inner, self.patience, self.spikes)

  def _adamw(self) -> optax.GradientTransformation:
    return optax.adamw(
      self.schedule(),
      *self.betas,
      eps=self.epsilon,
      weight_decay=self.weight_decay,
    )

  def _muon(self) -> optax.GradientTransformation:
    adamw = optax.adamw(
      self.schedule(),
      *self.betas,
      eps=self.epsilon,
      weight_decay=self.weight_decay,
      nesterov=True,
    )
    return muon.muon(
      self._schedule(self.muon),
      adamw,
      weight_decay=self.weight_decay,
      epsilon=self.epsilon,
    )


def hold_fixed(
  inner: optax.GradientTransformation,
) -> optax.GradientTransformation:
  """`inner`, whose updates of parameters named `fixed_...` are zero."""

  def held(path: tuple, update: Any) -> Any:
    name = jax.tree_util.keystr(path[-1:], simple=True)
    return jnp.zeros_like(update) if name.startswith("fixed_") else update

  def update(
    grads: Any, state: Any, params: Any = None
  ) -> tuple[Any, optax.OptState]:
    updates, state = inner.update(grads, state, params)
    return jax.tree_util.tree_map_with_path(held, updates), state

  return optax.GradientTransformation(inner.init, update)


def ema_update(
  average: Any, params: Any, step: Any, decay: float | None
) -> Any:
  """d average + (1 - d) params with d = min(decay, (1 + n) / (10 + n)).

  LDM's warm-up of the moving average: n = 1 after the first update. None stays
  None.
  """
  if average is None:
    return None
  n = jnp.asarray(step, jnp.float32)
  d = jnp.minimum(decay, (1 + n) / (10 + n))
  return optax.incremental_update(params, average, 1 - d)


def accumulate_gradients(gradient: Callable, count: int, *trees: Any) -> Any:
  """Mean of `gradient(*slice)` over `count` equal slices of the batch axis.

  A scan, so only one slice's activations are in memory at a time. Slice i takes
  examples i, i + count, ...: a batch that is sharded over devices stays so.
  """
  if count == 1:
    return gradient(*trees)
  split = lambda x: jnp.swapaxes(
    x.reshape(x.shape[0] // count, count, *x.shape[1:]), 0, 1
  )
  slices = jax.tree.map(split, trees)
  first = jax.eval_shape(gradient, *jax.tree.map(lambda x: x[0], slices))
  zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), first)

  def add(total, part):
    return jax.tree.map(jnp.add, total, gradient(*part)), None

  total, _ = jax.lax.scan(add, zero, slices)
  return jax.tree.map(lambda x: x / count, total)
