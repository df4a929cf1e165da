"""Stage one in small: an autoencoder that imitates a larger one."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from ldm_jax.fields.limits import (
  Below1,
  Count,
  Natural,
  NonNegative,
  Positive,
)
from ldm_jax.latents import LatentChoice, select_latents
from ldm_jax.nn.discriminator import PatchDiscriminator
from ldm_jax.nn.encoders.lpips import LPIPS
from ldm_jax.nn.first_stage import FirstStage
from ldm_jax.nn.tiny_autoencoder import TinyAutoencoder
from ldm_jax.pixels import to_float
from ldm_jax.runtime.optimizer import Optimizer, ema_update
from ldm_jax.training.first_stage.adversarial_loss import (
  CriticLoss,
  discriminate,
  update_if,
)
from ldm_jax.training.first_stage.autoencoder_state import State
from ldm_jax.training.first_stage.reconstruction_loss import (
  PixelNorm,
  pixel_error,
  psnr,
)
from ldm_jax.training.first_stage.teacher import (
  Frozen,
  Images,
  Lesson,
  check_student,
  decode,
  encode,
  student_of,
)
from ldm_jax.training.first_stage.trainable_parameters import replace, select

Batch = Mapping[str, Any]  # arrays [b ...], or their shapes


@dataclasses.dataclass(frozen=True)
class DistillationTask:
  """A TinyAutoencoder is trained to encode and decode as a teacher does.

  The teacher is a first stage with encoder q, decoder D and scale s of its
  latents; the student has encoder e and decoder d. With z = s q(x), normalised
  as the denoiser sees it, and y = D(z), clipped to [-1, 1], the student
  descends

    latent_weight mean (e(x) - mode of z)^2
    + mean |y - d(z)|^p + perceptual_weight LPIPS(y, d(z)) + disc_weight g

  with g = -mean C(d(z)) of a discriminator C that learns to distinguish d(z)
  from y. The first term is the encoder's alone, the others are the decoder's.
  So the student's latents are the teacher's scaled ones, and their own scale
  is 1, as those of TAESD (github.com/madebyollin/taesd).

  Attributes:
    autoencoder: the student. None takes TAESD's with the latent channels and
      the stride of the teacher.
    channels: of that one; None takes TAESD's 64.
    first_stage: the teacher; filled in from `Experiment.start` or
      `Experiment.first_stage`.
    latent_scale: s; None takes that of the model to start from, or measures
      1 / std if it is an autoencoder alone.
    latents: whether z is a sample of the posterior or its mode.
    target: y is the teacher's image, or the photograph x itself.
    trains_encoder: False leaves the encoder as it was initialised, for decoders
      of previews alone.
    pixel_norm: |.|^p: "l1", "l2" or "charbonnier".
    perceptual: LPIPS, or None.
    discriminator: C, or None.
    disc_start: the step from which g counts; C is not trained before.
    critic_optimizer: of C.
    ema_decay: of a moving average of the student, or None for none.

  Raises:
    ValueError: `autoencoder` and `channels` contradict each other.
  """

  autoencoder: TinyAutoencoder | None = None
  channels: Count | None = None
  first_stage: FirstStage | None = None
  latent_scale: Positive | None = None
  latents: LatentChoice = "sample"
  target: Literal["teacher", "images"] = "teacher"
  trains_encoder: bool = True
  latent_weight: NonNegative = 1.0
  pixel_norm: PixelNorm = "l2"
  perceptual: LPIPS | None = None
  perceptual_weight: NonNegative = 0.1
  discriminator: PatchDiscriminator | None = None
  disc_weight: NonNegative = 0.01
  disc_start: Natural = 0
  critic_loss: CriticLoss = "hinge"
  optimizer: Optimizer = Optimizer(1e-3, (0.9, 0.99), weight_decay=0.0)
  critic_optimizer: Optimizer = Optimizer(1e-4, (0.5, 0.9), weight_decay=0.0)
  ema_decay: Below1 | None = 0.999

  autoencoder_scale = 1.0  # of the student's latents, which are scaled already

  def __post_init__(self):
    module = self.autoencoder
    if module is not None and self.channels not in (None, module.channels):
      raise ValueError(
        f"channels={self.channels}, but the autoencoder has "
        f"{module.channels}; leave one of them out (None)"
      )

  def with_first_stage(self, stage: FirstStage) -> "DistillationTask":
    """The same with a teacher, and a student that fits it.

    Raises:
      ValueError: the student cannot have the teacher's latents.
    """
    module = self.autoencoder or student_of(stage, self.channels or 64)
    check_student(module, stage)
    return dataclasses.replace(self, autoencoder=module, first_stage=stage)

  def frozen_shapes(self, batch: Batch) -> Frozen:
    """Shapes of `frozen` for batches like this one."""
    images = jax.ShapeDtypeStruct(batch["image"].shape, jnp.float32)
    noise = jax.ShapeDtypeStruct(self._latent_shape(batch), jnp.float32)
    key, perceptual = jax.random.key(0), None
    teacher = jax.eval_shape(self.first_stage.init, key, images, noise)
    if self.perceptual is not None:
      perceptual = jax.eval_shape(self.perceptual.init, key, images, images)
    scale = jax.ShapeDtypeStruct((), jnp.float32)
    return Frozen(teacher, scale, perceptual)

  def init(self, key: Array, batch: Batch, frozen: Frozen) -> State:
    """The initial state for batches like this one."""
    del frozen
    key_student, key_critic = jax.random.split(key)
    images = to_float(batch["image"][:1])
    noise = jnp.zeros((1, *self._latent_shape(batch)[1:]))
    variables = self.autoencoder.init(key_student, images, noise)
    critic = critic_opt = None
    if self.discriminator is not None:
      critic = self.discriminator.init(key_critic, images)
      critic_opt = self.critic_optimizer.build().init(critic)
    return State(
      step=jnp.zeros((), jnp.int32),
      params={"autoencoder": variables},
      opt=self.optimizer.build().init(select(variables, self._trains)),
      ema=None if self.ema_decay is None else variables,
      critic=critic,
      critic_opt=critic_opt,
    )

  def step(
    self, state: State, frozen: Frozen, batch: Batch, key: Array
  ) -> tuple[State, dict[str, Array]]:
    """One update of the student and of the discriminator."""
    images = to_float(batch["image"])
    lesson = self.lesson(frozen, images, key)
    variables = state.params["autoencoder"]
    (encoded, recon), pullback = jax.vjp(
      lambda selected: self._answer(
        replace(variables, selected), images, lesson.latents
      ),
      select(variables, self._trains),
    )
    (loss, metrics), at_outputs = jax.value_and_grad(self._loss, has_aux=True)(
      (encoded, recon), lesson, frozen
    )
    state, at_recon, adversarial = self._adversarial(
      state, lesson.target, recon, at_outputs[1]
    )
    (grads,) = pullback((at_outputs[0], at_recon))
    metrics |= {"loss": loss, "gradient_norm": optax.tree.norm(grads)}
    metrics["learning_rate"] = self.optimizer.current_rate(state.opt)
    return self._updated(state, grads), metrics | adversarial

  def measure(
    self, state: State, frozen: Frozen, batch: Batch, key: Array
  ) -> dict[str, Array]:
    """Held-out PSNR [dB] of decoded modes.

    "psnr" against the teacher's images, "image_psnr" against the photographs,
    "teacher_psnr" of the teacher against the photographs; "latent_error" is the
    mean squared error of the student's latents, if it has learnt any.
    """
    del key
    images = to_float(batch["image"])
    mode, decoded = self._teach(frozen, images)
    encoded, recon = self._answer(self.trained(state), images, mode)
    found = {"psnr": psnr(recon, decoded), "image_psnr": psnr(recon, images)}
    found["teacher_psnr"] = psnr(decoded, images)
    if encoded is not None:
      found["latent_error"] = jnp.square(encoded - mode).mean()
    return found

  def preview(
    self, state: State, frozen: Frozen, batch: Batch, key: Array
  ) -> dict[str, Array]:
    """{"reconstructions"}: inputs, the teacher's images, the student's."""
    del key
    images = to_float(batch["image"])
    mode, decoded = self._teach(frozen, images)
    _, recon = self._answer(self.trained(state), images, mode)
    return {"reconstructions": jnp.concatenate([images, decoded, recon], 2)}

  def trained(self, state: State) -> Any:
    """The student's parameters to use: the average if there is one."""
    return state.params["autoencoder"] if state.ema is None else state.ema

  def lesson(self, frozen: Frozen, images: Images, key: Array) -> Lesson:
    """What the student is to return; no gradient goes through it."""
    posterior = encode(self.first_stage, frozen, images)
    noise = jax.random.normal(key, posterior.mode().shape)
    scale = frozen.latent_scale
    latents = scale * select_latents(posterior, noise, self.latents)
    target = images
    if self.target == "teacher":
      target = decode(self.first_stage, frozen, latents)
    return Lesson(scale * posterior.mode(), latents, target)

  @property
  def _trains(self) -> tuple[str, ...]:
    """Prefixes of the parameters that are trained."""
    return () if self.trains_encoder else ("decoder",)

  def _latent_shape(self, batch: Batch) -> tuple[int, ...]:
    count, *size, _ = batch["image"].shape
    return count, *self.first_stage.latent_shape(*size)

  def _teach(self, frozen: Frozen, images: Images) -> tuple[Array, Images]:
    """Modes, and the teacher's images of them."""
    posterior = encode(self.first_stage, frozen, images)
    mode = frozen.latent_scale * posterior.mode()
    return mode, decode(self.first_stage, frozen, mode)

  def _answer(
    self, variables: Any, images: Images, latents: Array
  ) -> tuple[Array | None, Images]:
    """The student's latents of images, if it learns any; and its images."""
    module, encoded = self.autoencoder, None
    if self.trains_encoder:
      encoded = module.apply(variables, images, method="encode").mode()
    return encoded, module.apply(variables, latents, method="decode")

  def _loss(
    self, outputs: tuple[Array | None, Images], lesson: Lesson, frozen: Frozen
  ) -> tuple[Float[Array, ""], dict[str, Array]]:
    """The loss but for g, and its parts."""
    encoded, recon = outputs
    loss = pixel_error(self.pixel_norm, lesson.target - recon).mean()
    metrics = {"pixel": loss}
    if self.perceptual is not None:
      distance = self.perceptual.apply(frozen.perceptual, lesson.target, recon)
      metrics["lpips"] = distance.mean()
      loss += self.perceptual_weight * metrics["lpips"]
    if encoded is not None:
      metrics["latent_error"] = jnp.square(encoded - lesson.mode).mean()
      loss += self.latent_weight * metrics["latent_error"]
    return loss, metrics

  def _adversarial(
    self, state: State, target: Images, recon: Images, at_recon: Images
  ) -> tuple[State, Images, dict[str, Array]]:
    """The state with C updated, the gradient with that of g added, metrics.

    Masked before `disc_start`, as in `AutoencoderTask`.
    """
    if self.discriminator is None:
      return state, at_recon, {}
    is_on = state.step >= self.disc_start
    learning = self.critic_optimizer, self.critic_loss
    before = state.critic, state.critic_opt
    after, of_g, metrics = discriminate(
      self.discriminator, learning, before, target, recon
    )
    (critic, opt), metrics = update_if(is_on, before, after, metrics)
    state = state.replace(critic=critic, critic_opt=opt)
    weight = jnp.where(is_on, self.disc_weight, 0.0)
    return state, at_recon + weight * of_g, metrics

  def _updated(self, state: State, grads: Any) -> State:
    """The state after an update of the student and of its average."""
    variables, ema, step = state.params["autoencoder"], state.ema, state.step
    before = select(variables, self._trains)
    updates, opt = self.optimizer.build().update(grads, state.opt, before)
    after = optax.apply_updates(before, updates)
    if self.ema_decay is not None:
      average = select(ema, self._trains)
      average = ema_update(average, after, step + 1, self.ema_decay)
      ema = replace(ema, average)
    params = {"autoencoder": replace(variables, after)}
    return state.replace(step=step + 1, params=params, opt=opt, ema=ema)
