"""Stage two: a denoiser of the first stage's latents."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from ldm_jax.concat_conditioning import (
  NoiseAugmentation,
  draw_drops,
  draw_noise_augmentation,
  prepare_inputs,
)
from ldm_jax.diffusion import samplers
from ldm_jax.diffusion.guidance import ClassifierFreeGuidance
from ldm_jax.diffusion.loss import (
  DenoisingLoss,
  Loss,
  mean_over_times,
  sample_times,
)
from ldm_jax.fields.limits import Count, Fraction, NonNegative, Positive
from ldm_jax.latent_diffusion import LatentDiffusion, Parameters
from ldm_jax.latents import (
  LatentChoice,
  encode_batch,
  image_shape,
  latent_shape,
  select_latents,
)
from ldm_jax.nn.conditioners.embedders import Condition
from ldm_jax.nn.lora import LoRA
from ldm_jax.pretrained.stacked_parameters import stack_parameters
from ldm_jax.runtime.optimizer import (
  Optimizer,
  accumulate_gradients,
  ema_update,
)

Batch = Mapping[str, Any]  # arrays [b ...], or their shapes


class State(flax.struct.PyTreeNode):
  """The training state; `params` and `ema` are of U-Net and conditioners, or of
  a LoRA."""

  step: Any
  params: Any
  ema: Any
  opt: Any

  @property
  def trained(self) -> Any:
    """The parameters to use: the average if there is one."""
    return self.params if self.ema is None else self.ema


class Frozen(flax.struct.PyTreeNode):
  """Parameters that are not trained: of the first stage, the factor on its
  latents, and of frozen conditioners, by `input_key`; with a LoRA `base`, U-Net
  and the other conditioners."""

  first_stage: Any
  latent_scale: Any
  conditioners: Any = flax.struct.field(default_factory=dict)
  base: Any = None


class StepNoise(NamedTuple):
  """All randomness of a step, drawn over the whole batch.

  Attributes:
    posterior: standard normal [b h w c], for the first stage's posterior.
    noise: standard normal [b h w c], eps.
    t: times [b].
    drop: per conditioner, where it gives its unconditional output, bool [b].
    dropout: a key [b] per example; a slice uses its first.
    noise_augmentation: of low-resolution inputs, or None.
  """

  posterior: Array
  noise: Array
  t: Array
  drop: dict[str, Array]
  dropout: Array
  noise_augmentation: NoiseAugmentation | None


@dataclasses.dataclass(frozen=True)
class DenoiserTask:
  """Trains eps_theta on a frozen first stage's latents.

  Rombach et al. 2022, eq. 2 and 3, with random dropping of conditions (Ho and
  Salimans 2022, algorithm 1).

  Attributes:
    model: first stage, U-Net, conditioners and noise schedule.
    optimizer: of U-Net and conditioners, or of the LoRA.
    ema_decay: of the moving average that is sampled from, or None for none.
    accumulate: slices of the batch, one after another, per update.
    latent_scale: latents are multiplied by it; None is their measured 1 / std.
    latents: x0 is a "sample" of the first stage's posterior, as in LDM, or its
      "mode". With a large KL weight most of a sample is noise, which cannot be
      predicted.
    preview_steps, preview_guidance: DDIM steps and guidance in previews.
    offset_noise: scale of additional noise, constant over each channel of an
      image, so that its mean is learned too (Podell et al. 2023, 2.5: 0.05).
    lora: trains low-rank updates of the model of `Experiment.start` instead.
    validation_times: values of (t + 1) / T, 0 the image, at which the held-out
      loss is measured and averaged; None draws times as in training.
  """

  model: LatentDiffusion = LatentDiffusion()
  optimizer: Optimizer = Optimizer()
  loss: Loss = DenoisingLoss()
  ema_decay: Fraction | None = 0.9999
  accumulate: Count = 1
  latent_scale: Positive | None = None
  latents: LatentChoice = "sample"
  preview_steps: Count = 50
  preview_guidance: float = 3.0
  offset_noise: NonNegative = 0.0
  lora: LoRA | None = None
  validation_times: tuple[Fraction, ...] | None = None

  def __post_init__(self):
    if self.loss.prediction != self.model.prediction:
      raise ValueError(
        f"the loss is of {self.loss.prediction!r} but the model predicts "
        f"{self.model.prediction!r}; set loss.prediction and "
        "model.prediction to the same"
      )

  @property
  def first_stage(self) -> Any:
    """The autoencoder whose latents are denoised."""
    return self.model.first_stage

  def with_first_stage(self, stage: Any) -> "DenoiserTask":
    """The same on another autoencoder's latents."""
    model = dataclasses.replace(self.model, first_stage=stage)
    return dataclasses.replace(self, model=model)

  def frozen_shapes(self, batch: Batch) -> Frozen:
    """Shapes of `frozen` for batches like this one."""
    images = jax.ShapeDtypeStruct(
      image_shape(self.first_stage, batch), jnp.float32
    )
    noise = jax.ShapeDtypeStruct(self._latent_shape(batch), jnp.float32)
    key = jax.random.key(0)
    frozen = Frozen(
      jax.eval_shape(self.model.first_stage.init, key, images, noise),
      jax.ShapeDtypeStruct((), jnp.float32),
    )
    if not self.model.frozen_conditioners and self.lora is None:
      return frozen
    base = jax.eval_shape(self.init_params, key, batch, frozen)
    parts = base["conditioners"]
    held = {name: parts.pop(name) for name in self.model.frozen_conditioners}
    held = stack_parameters(self.model, {"conditioners": held})
    return frozen.replace(base=self.lora and base, **held)

  def init(self, key: Array, batch: Batch, frozen: Frozen) -> State:
    """The initial state for batches like this one."""
    if self.lora is None:
      params = self.init_params(key, batch, frozen)
      for name in self.model.frozen_conditioners:
        del params["conditioners"][name]
      params = stack_parameters(self.model, params)
    else:
      params = self.lora.init(key, frozen.base)
    opt = self.optimizer.build().init(params)
    ema = None if self.ema_decay is None else params
    return State(jnp.zeros((), jnp.int32), params, ema, opt)

  def init_params(self, key: Array, batch: Batch, frozen: Frozen) -> dict:
    """Initial parameters of U-Net and all conditioners."""
    params = Parameters(frozen.first_stage, frozen.latent_scale, None, None)
    no_noise = jax.tree.map(
      jnp.zeros_like, self.draw(key, batch).noise_augmentation
    )
    raw = prepare_inputs(self.model, params, batch, no_noise)
    return self.model.init(key, raw, self._latent_shape(batch))

  def step(
    self, state: State, frozen: Frozen, batch: Batch, key: Array
  ) -> tuple[State, dict[str, Array]]:
    """One update from one global batch."""
    draws = self.draw(key, batch)

    def gradient(batch: Batch, draws: StepNoise):
      loss = lambda params: self._loss(params, frozen, batch, draws).mean()
      return jax.value_and_grad(loss)(state.params)

    loss, grads = accumulate_gradients(gradient, self.accumulate, batch, draws)
    updates, opt = self.optimizer.build().update(grads, state.opt, state.params)
    params = optax.apply_updates(state.params, updates)
    step = state.step + 1
    ema = ema_update(state.ema, params, step, self.ema_decay)
    metrics = {"loss": loss, "gradient_norm": optax.tree.norm(grads)}
    metrics["learning_rate"] = self.optimizer.current_rate(state.opt)
    return State(step, params, ema, opt), metrics

  def measure(
    self, state: State, frozen: Frozen, batch: Batch, key: Array
  ) -> dict[str, Array]:
    """The trained model's loss on held-out images, no condition dropped."""
    draws = self.draw(key, batch)
    draws = draws._replace(drop=jax.tree.map(jnp.zeros_like, draws.drop))
    loss_at = lambda t: self._loss(
      state.trained, frozen, batch, draws._replace(t=t)
    ).mean()
    if (times := self.validation_times) is None:
      return {"loss": loss_at(draws.t)}
    return mean_over_times(loss_at, self.model.schedule, times, len(draws.t))

  def preview(
    self, state: State, frozen: Frozen, batch: Batch, key: Array
  ) -> dict[str, Array]:
    """{"samples"}: images generated for the batch's conditions."""
    model = self.model
    count, *shape = self._latent_shape(batch)
    params = self.parameters(state.trained, frozen)
    raw = prepare_inputs(
      model, params, batch, self.draw(key, batch).noise_augmentation
    )

    def condition(is_dropped: bool) -> Condition:
      full = lambda part: jnp.full(count, is_dropped and part.has_unconditional)
      drop = {part.input_key: full(part) for part in model.conditioners}
      return model.condition(params, raw, drop)

    guidance = ClassifierFreeGuidance(self.preview_guidance)
    sides = condition(True), condition(False)
    denoise = model.guided_denoiser(params, *sides, guidance)
    keys = samplers.image_keys(key, jnp.arange(count))
    steps = min(self.preview_steps, model.schedule.steps)
    plan = samplers.SamplerConfig(steps).plan(model.schedule)
    noise = samplers.initial_noise(keys, tuple(shape))
    x0 = samplers.sample(denoise, noise, plan.table, keys)
    return {"samples": model.decode(params, x0)}

  def parameters(self, trained: Any, frozen: Frozen) -> Parameters:
    """The model's parameters, from trained and frozen ones."""
    if self.lora is not None:
      trained = self.lora.merge(frozen.base, trained)
    return Parameters(
      first_stage=frozen.first_stage,
      latent_scale=frozen.latent_scale,
      conditioners={**trained["conditioners"], **frozen.conditioners},
      unet=trained["unet"],
    )

  def draw(self, key: Array, batch: Batch) -> StepNoise:
    """All random numbers of a step, from one key."""
    shape = self._latent_shape(batch)
    key_post, key_noise, key_t, key_out, *key_drop = jax.random.split(
      key, 4 + len(self.model.conditioners)
    )
    noise = jax.random.normal(key_noise, shape)
    if self.offset_noise:
      key_mean = jax.random.fold_in(key_noise, 1)
      means = jax.random.normal(key_mean, (shape[0], 1, 1, shape[-1]))
      noise += self.offset_noise * means
    return StepNoise(
      posterior=jax.random.normal(key_post, shape),
      noise=noise,
      t=sample_times(
        key_t, self.model.schedule, shape[0], self.loss.density, shape[1:3]
      ),
      drop=draw_drops(self.model, key, key_drop, shape[0]),
      dropout=jax.random.split(key_out, shape[0]),
      noise_augmentation=draw_noise_augmentation(
        self.model, jax.random.fold_in(key, 1), batch
      ),
    )

  def _latent_shape(self, batch: Batch) -> tuple[int, ...]:
    return latent_shape(self.first_stage, batch)

  def _loss(
    self, trained: Any, frozen: Frozen, batch: Batch, draws: StepNoise
  ) -> Array:
    """Loss per example."""
    params = self.parameters(trained, frozen)
    posterior = encode_batch(self.first_stage, params.first_stage, batch)
    x0 = params.latent_scale * select_latents(
      posterior, draws.posterior, self.latents
    )
    raw = prepare_inputs(self.model, params, batch, draws.noise_augmentation)
    condition = self.model.condition(params, raw, draws.drop)
    rngs = {"dropout": draws.dropout[0]}
    network = lambda xt, t: self.model.predict(params, xt, t, condition, rngs)
    x0 = jax.lax.stop_gradient(x0)
    return self.loss(self.model.schedule, network, x0, draws.t, draws.noise)
