"""Stage two: add noise to latents, name it, descend, and average."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from ldm_jax.diffusion import samplers
from ldm_jax.diffusion.loss import DenoisingLoss, draw_times
from ldm_jax.latent_diffusion import LatentDiffusion, Parameters, to_float
from ldm_jax.runtime.optimizer import Optimizer, averaged, in_slices

Batch = Mapping[str, Any]  # arrays [b ...], or their shapes


class State(flax.struct.PyTreeNode):
  """What learning changes. `params` and `ema` hold U-Net and conditioners."""

  step: Any
  params: Any
  ema: Any
  opt: Any


class Frozen(flax.struct.PyTreeNode):
  """What learning leaves alone: the first stage, the scale of its latents, and
  conditioners that were trained before (by what each reads)."""

  first_stage: Any
  latent_scale: Any
  conditioners: Any = flax.struct.field(default_factory=dict)


class Draws(NamedTuple):
  """All randomness of a step, drawn over the whole batch.

  Attributes:
    posterior: standard normal [b h w c], for the first stage's posterior.
    noise: standard normal [b h w c], eps.
    t: times [b].
    drop: per conditioner, where its null is said instead, bool [b].
    dropout: a key [b] per example; a slice uses its first.
  """

  posterior: Array
  noise: Array
  t: Array
  drop: dict[str, Array]
  dropout: Array


@dataclasses.dataclass(frozen=True)
class Denoising:
  """Learns eps_theta on a frozen first stage's latents.

  Rombach et al. 2022, eq. 2 and 3, with the condition dropped now and then
  (Ho and Salimans 2022, algorithm 1).

  Attributes:
    ema_decay: of the average that is sampled from.
    accumulate: slices of the batch, one after another, per update.
    latent_scale: latents are multiplied by it, or None to measure
      1 / std on the first batches and store it with the run.
    preview_steps: of DDIM, for previews.
    preview_guidance: scale of guidance in previews.
  """

  model: LatentDiffusion = LatentDiffusion()
  optimizer: Optimizer = Optimizer()
  loss: DenoisingLoss = DenoisingLoss()
  ema_decay: float = 0.9999
  accumulate: int = 1
  latent_scale: float | None = None
  preview_steps: int = 50
  preview_guidance: float = 3.0

  def __post_init__(self):
    if self.loss.prediction != self.model.prediction:
      raise ValueError(
        f"the loss asks for {self.loss.prediction!r} but the model answers "
        f"{self.model.prediction!r}; set loss.prediction and "
        "model.prediction alike"
      )

  def frozen_shapes(self, batch: Batch) -> Frozen:
    """Shapes of what `frozen` must hold for batches like this one."""
    images = jax.ShapeDtypeStruct(batch["image"].shape, jnp.float32)
    noise = jax.ShapeDtypeStruct(self._latent_shape(batch), jnp.float32)
    return Frozen(
      jax.eval_shape(
        self.model.first_stage.init, jax.random.key(0), images, noise
      ),
      jax.ShapeDtypeStruct((), jnp.float32),
      self._frozen_parts(batch),
    )

  def _frozen_parts(self, batch: Batch) -> dict[str, Any]:
    """Shapes of the conditioners that are not trained."""
    if not self.model.frozen:
      return {}
    made = jax.eval_shape(
      lambda batch: self.model.init(
        jax.random.key(0), batch, self._latent_shape(batch)
      ),
      batch,
    )
    return {name: made["conditioners"][name] for name in self.model.frozen}

  def init(self, key: Array, batch: Batch, frozen: Frozen) -> State:
    """A fresh state for batches like this one."""
    del frozen
    params = self.model.init(key, batch, self._latent_shape(batch))
    for name in self.model.frozen:
      del params["conditioners"][name]
    opt = self.optimizer.build().init(params)
    return State(jnp.zeros((), jnp.int32), params, params, opt)

  def step(
    self, state: State, frozen: Frozen, batch: Batch, key: Array
  ) -> tuple[State, dict[str, Array]]:
    """One update from one global batch."""
    draws = self.draw(key, batch)

    def gradient(batch: Batch, draws: Draws):
      loss = lambda params: self._loss(params, frozen, batch, draws).mean()
      return jax.value_and_grad(loss)(state.params)

    loss, grads = in_slices(gradient, self.accumulate, batch, draws)
    updates, opt = self.optimizer.build().update(grads, state.opt, state.params)
    params = optax.apply_updates(state.params, updates)
    step = state.step + 1
    ema = averaged(state.ema, params, step, self.ema_decay)
    metrics = {"loss": loss, "gradient_norm": optax.tree.norm(grads)}
    return State(step, params, ema, opt), metrics

  def measure(
    self, state: State, frozen: Frozen, batch: Batch, key: Array
  ) -> dict[str, Array]:
    """The averaged model's loss on held-out images, nothing dropped."""
    draws = self.draw(key, batch)
    kept = jax.tree.map(jnp.zeros_like, draws.drop)
    losses = self._loss(state.ema, frozen, batch, draws._replace(drop=kept))
    return {"loss": losses.mean()}

  def preview(
    self, state: State, frozen: Frozen, batch: Batch, key: Array
  ) -> dict[str, Array]:
    """{"samples"}: images drawn for the batch's conditions."""
    model = self.model
    count, *shape = self._latent_shape(batch)
    params = self.parameters(state.ema, frozen)
    says = lambda is_null: model.condition(
      params,
      batch,
      {p.reads: jnp.full((count,), is_null) for p in model.conditioners},
    )
    denoise = model.guided(
      params, says(True), says(False), self.preview_guidance
    )
    keys = samplers.image_keys(key, jnp.arange(count))
    steps = min(self.preview_steps, model.schedule.steps)
    times = samplers.times(steps, "leading", model.schedule.steps)
    x0 = samplers.run(
      samplers.ddim(model.schedule),
      denoise,
      samplers.initial_noise(keys, tuple(shape)),
      samplers.rows(times),
      keys,
    )
    return {"samples": model.decode(params, x0)}

  def parameters(self, trained: Any, frozen: Frozen) -> Parameters:
    """Trained and frozen parts as the model's parameters."""
    return Parameters(
      first_stage=frozen.first_stage,
      latent_scale=frozen.latent_scale,
      conditioners={**trained["conditioners"], **frozen.conditioners},
      unet=trained["unet"],
    )

  def draw(self, key: Array, batch: Batch) -> Draws:
    """All random numbers of a step, from one key."""
    shape = self._latent_shape(batch)
    parts = self.model.conditioners
    key_post, key_noise, key_t, key_out, *key_drop = jax.random.split(
      key, 4 + len(parts)
    )
    return Draws(
      posterior=jax.random.normal(key_post, shape),
      noise=jax.random.normal(key_noise, shape),
      t=draw_times(key_t, self.model.schedule, shape[0]),
      drop={
        part.reads: jax.random.bernoulli(k, part.drop_rate, shape[:1])
        for part, k in zip(parts, key_drop, strict=True)
      },
      dropout=jax.random.split(key_out, shape[0]),
    )

  def _latent_shape(self, batch: Batch) -> tuple[int, ...]:
    count, height, width, _ = batch["image"].shape
    return count, *self.model.first_stage.latent_shape(height, width)

  def _loss(
    self, trained: Any, frozen: Frozen, batch: Batch, draws: Draws
  ) -> Array:
    """Loss per example."""
    params = self.parameters(trained, frozen)
    posterior = self.model.encode(params, to_float(batch["image"]))
    x0 = params.latent_scale * posterior.sample(draws.posterior)
    condition = self.model.condition(params, batch, draws.drop)
    rngs = {"dropout": draws.dropout[0]}
    network = lambda xt, t: self.model.network(params, xt, t, condition, rngs)
    x0 = jax.lax.stop_gradient(x0)
    return self.loss(self.model.schedule, network, x0, draws.t, draws.noise)


def measured_scale(
  model: LatentDiffusion, first_stage: Any, batches: Iterable[Batch], key: Array
) -> float:
  """1 / std of sampled latents over all elements of `batches`.

  LDM's scale_by_std (Rombach et al. 2022, appendix G), on more than one batch
  and the same wherever it is computed.
  """

  @jax.jit
  def moments(batch: Batch, key: Array) -> Array:
    posterior = model.first_stage.apply(
      first_stage, to_float(batch["image"]), method="encode"
    )
    noise = jax.random.normal(key, posterior.mode().shape)
    latents = posterior.sample(noise)
    return jnp.stack([latents.mean(), jnp.square(latents).mean()])

  totals = [
    moments(batch, jax.random.fold_in(key, i))
    for i, batch in enumerate(batches)
  ]
  mean, square = sum(totals) / len(totals)
  return float(1.0 / jnp.sqrt(square - mean**2))
