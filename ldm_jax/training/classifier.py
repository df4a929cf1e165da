"""A classifier of noisy latents, for classifier guidance."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from ldm_jax.diffusion.loss import sample_times
from ldm_jax.diffusion.schedule import Schedule, q_sample
from ldm_jax.fields.limits import Fraction, Positive
from ldm_jax.latents import (
  LatentChoice,
  encode_batch,
  image_shape,
  latent_shape,
  select_latents,
)
from ldm_jax.nn.encoder_unet import EncoderUNet
from ldm_jax.nn.first_stage import FirstStage
from ldm_jax.runtime.optimizer import Optimizer, ema_update
from ldm_jax.training.denoiser import Frozen, State

Batch = Mapping[str, Any]  # arrays [b ...], or their shapes


@dataclasses.dataclass(frozen=True)
class ClassifierTask:
  """Descends -log p(y | x_t, t) on a frozen first stage's latents.

  Classifier guidance (Dhariwal and Nichol 2021, section 4) on latents, as in
  LDM-8-G (Rombach et al. 2022, table 10 in the appendix).

  Attributes:
    first_stage: filled in from the first stage's run.
    classifier: (x_t, t) -> logits.
    schedule: that of the diffusion model to be guided.
    optimizer: of the classifier.
    input_key: name of the labels in a batch.
    ema_decay: of the moving average that guides.
    latents: as in the diffusion model to be guided.
    latent_scale: as in the diffusion model to be guided; None measures 1 / std
      on the first batches, which gives the same for the same data.
  """

  first_stage: FirstStage | None = None
  classifier: EncoderUNet = EncoderUNet()
  schedule: Schedule = Schedule()
  optimizer: Optimizer = Optimizer()
  input_key: str = "label"
  ema_decay: Fraction = 0.9999
  latent_scale: Positive | None = None
  latents: LatentChoice = "sample"

  def with_first_stage(self, stage: FirstStage) -> "ClassifierTask":
    """The same on another autoencoder's latents."""
    return dataclasses.replace(self, first_stage=stage)

  def frozen_shapes(self, batch: Batch) -> Frozen:
    """Shapes of `frozen` for batches like this one."""
    if self.input_key not in batch:
      raise ValueError(
        f"the classifier reads {self.input_key!r}, but the examples have "
        f"{', '.join(sorted(batch))}"
      )
    images = jax.ShapeDtypeStruct(
      image_shape(self.first_stage, batch), jnp.float32
    )
    noise = jax.ShapeDtypeStruct(self._latent_shape(batch), jnp.float32)
    stage = jax.eval_shape(
      self.first_stage.init, jax.random.key(0), images, noise
    )
    return Frozen(stage, jax.ShapeDtypeStruct((), jnp.float32), {})

  def init(self, key: Array, batch: Batch, frozen: Frozen) -> State:
    """The initial state for batches like this one."""
    del frozen
    shape = self._latent_shape(batch)
    params = self.classifier.init(key, jnp.zeros(shape), jnp.zeros(shape[:1]))
    opt = self.optimizer.build().init(params)
    return State(jnp.zeros((), jnp.int32), params, params, opt)

  def step(
    self, state: State, frozen: Frozen, batch: Batch, key: Array
  ) -> tuple[State, dict[str, Array]]:
    """One update from one global batch."""

    def loss(params: Any):
      losses, hits = self._losses(params, frozen, batch, key)
      return losses.mean(), hits.mean()

    (loss_now, accuracy), grads = jax.value_and_grad(loss, has_aux=True)(
      state.params
    )
    updates, opt = self.optimizer.build().update(grads, state.opt, state.params)
    params = optax.apply_updates(state.params, updates)
    step = state.step + 1
    ema = ema_update(state.ema, params, step, self.ema_decay)
    metrics = {"loss": loss_now, "accuracy": accuracy}
    metrics["gradient_norm"] = optax.tree.norm(grads)
    metrics["learning_rate"] = self.optimizer.current_rate(state.opt)
    return State(step, params, ema, opt), metrics

  def measure(
    self, state: State, frozen: Frozen, batch: Batch, key: Array
  ) -> dict[str, Array]:
    """The averaged classifier's loss and accuracy at random times."""
    losses, hits = self._losses(state.ema, frozen, batch, key)
    return {"loss": losses.mean(), "accuracy": hits.mean()}

  def preview(
    self, state: State, frozen: Frozen, batch: Batch, key: Array
  ) -> dict[str, Array]:
    """Nothing: a classifier generates no images."""
    return {}

  def _losses(
    self, params: Any, frozen: Frozen, batch: Batch, key: Array
  ) -> tuple[Array, Array]:
    """Cross-entropy of every example, and whether its class is the first."""
    key_post, key_noise, key_t = jax.random.split(key, 3)
    shape, labels = self._latent_shape(batch), batch[self.input_key]
    posterior = encode_batch(self.first_stage, frozen.first_stage, batch)
    noise = jax.random.normal(key_post, shape)
    x0 = select_latents(posterior, noise, self.latents)
    x0 = jax.lax.stop_gradient(frozen.latent_scale * x0)
    t = sample_times(key_t, self.schedule, shape[0])
    noise = jax.random.normal(key_noise, shape)
    xt = q_sample(self.schedule, x0, t, noise)
    logits = self.classifier.apply(params, xt, t)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses, (logits.argmax(-1) == labels).astype(jnp.float32)

  def _latent_shape(self, batch: Batch) -> tuple[int, ...]:
    return latent_shape(self.first_stage, batch)
