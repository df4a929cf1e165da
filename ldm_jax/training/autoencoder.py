"""Stage one: the autoencoder and its patch discriminator, in one step."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from ldm_jax.fields.limits import Below1, Natural, NonNegative
from ldm_jax.nn.autoencoder import Autoencoder
from ldm_jax.nn.discriminator import (
  PatchDiscriminator,
  generator_loss,
  hinge_loss,
  vanilla_loss,
)
from ldm_jax.nn.encoders.lpips import LPIPS
from ldm_jax.nn.first_stage import FirstStage
from ldm_jax.pixels import to_float, to_uint8
from ldm_jax.runtime.optimizer import Optimizer, ema_update

Batch = Mapping[str, Any]  # arrays [b ...], or their shapes
CRITIC_LOSSES = {"hinge": hinge_loss, "vanilla": vanilla_loss}


class State(flax.struct.PyTreeNode):
  """The training state; `params` holds "autoencoder" and "logvar", `ema` the
  autoencoder's moving average or None, `critic` the discriminator."""

  step: Any
  params: Any
  opt: Any
  ema: Any
  critic: Any
  critic_opt: Any


class Frozen(flax.struct.PyTreeNode):
  """Parameters that are not trained: those of LPIPS, or None."""

  perceptual: Any


@dataclasses.dataclass(frozen=True)
class AutoencoderTask:
  """Rombach et al. 2022, section 3.1 and eq. 25, with LDM's reductions.

  nll = (|x - r|^p + perceptual_weight LPIPS(x, r)) / e^s + s, where LPIPS is
  one number per image and s is `logvar`; it is summed over pixels and averaged
  over images. The autoencoder descends

    nll + bottleneck_weight b + disc_weight d g,   g = -mean D(r),
    d = clip(|dnll / dW| / (|dg / dW| + 1e-4), 0, 1e4)

  with b the bottleneck's loss, W the decoder's last kernel and d taken as a
  constant; g enters at `disc_start`. The discriminator descends its own loss
  on the same r.

  Attributes:
    autoencoder: a first stage; `Autoencoder` where there is a discriminator.
    discriminator: D, or None.
    optimizer: LDM's is Adam (0.5, 0.9) at 4.5e-6 times the batch.
    pixel_norm: p is 1 in LDM, 2 in the later sd-vae-ft-mse.
    bottleneck_weight: 1e-6 for the KL divergence, 1 for vector quantisation.
    reduction: "sum" over pixels (KL), or "mean" (VQ). The weights, the clip of
      d and Adam's epsilon depend on it.
    logvar: s; a constant in LDM, where it is in no optimizer.
    learns_logvar: train s as well (Stability's later configs).
    disc_start: the step from which the adversarial terms count. Until then the
      discriminator is not trained.
    ema_decay: of a moving average of the autoencoder, or None for none.
    init_scale: factor on the autoencoder's initial kernels. 1 is PyTorch's
      initialisation, which LDM kept; 3^0.5 keeps the variance of activations
      through the layers, and small runs learn faster from there.
  """

  autoencoder: FirstStage = Autoencoder()
  perceptual: LPIPS | None = LPIPS()
  discriminator: PatchDiscriminator | None = PatchDiscriminator()
  optimizer: Optimizer = Optimizer(4.5e-6, (0.5, 0.9), weight_decay=0.0)
  critic_optimizer: Optimizer = Optimizer(4.5e-6, (0.5, 0.9), weight_decay=0.0)
  pixel_norm: Literal["l1", "l2"] = "l1"
  perceptual_weight: NonNegative = 1.0
  bottleneck_weight: NonNegative = 1e-6
  reduction: Literal["sum", "mean"] = "sum"
  logvar: float = 0.0
  learns_logvar: bool = False
  disc_start: Natural = 50_001
  disc_weight: NonNegative = 0.5
  critic_loss: Literal["hinge", "vanilla"] = "hinge"
  ema_decay: Below1 | None = None
  init_scale: NonNegative = 1.0

  def frozen_shapes(self, batch: Batch) -> Frozen:
    """Shapes of `frozen` for batches like this one."""
    if self.perceptual is None:
      return Frozen(None)
    images = jax.ShapeDtypeStruct(batch["image"].shape, jnp.float32)
    return Frozen(
      jax.eval_shape(self.perceptual.init, jax.random.key(0), images, images)
    )

  def init(self, key: Array, batch: Batch, frozen: Frozen) -> State:
    """The initial state for batches like this one."""
    del frozen
    key_autoencoder, key_critic = jax.random.split(key)
    images = to_float(batch["image"][:1])
    noise = jnp.zeros((1, *self._latent_shape(batch)))
    variables = jax.tree.map(
      lambda leaf: leaf * self.init_scale if leaf.ndim > 1 else leaf,
      self.autoencoder.init(key_autoencoder, images, noise),
    )
    params = {"autoencoder": variables, "logvar": jnp.float32(self.logvar)}
    critic = critic_opt = None
    if self.discriminator is not None:
      critic = self.discriminator.init(key_critic, images)
      critic_opt = self.critic_optimizer.build().init(critic)
    return State(
      step=jnp.zeros((), jnp.int32),
      params=params,
      opt=self.optimizer.build().init(params),
      ema=None if self.ema_decay is None else variables,
      critic=critic,
      critic_opt=critic_opt,
    )

  def step(
    self, state: State, frozen: Frozen, batch: Batch, key: Array
  ) -> tuple[State, dict[str, Array]]:
    """One update of autoencoder and discriminator, from one forward pass."""
    images = to_float(batch["image"])
    reconstruct = self._reconstruct(batch, key)
    (recon, bottleneck_loss), pullback = jax.vjp(
      lambda variables: reconstruct(variables, images),
      state.params["autoencoder"],
    )
    (nll, metrics), (recon_grad, logvar_grad) = jax.value_and_grad(
      self._nll, (0, 1), has_aux=True
    )(recon, state.params["logvar"], images, frozen)

    state, recon_grad, adversarial = self._adversarial(
      state, images, recon, recon_grad, pullback
    )
    (grads,) = pullback((recon_grad, jnp.float32(self.bottleneck_weight)))
    # A constant does not count in the norm that is clipped.
    logvar_grad = jnp.where(self.learns_logvar, logvar_grad, 0.0)
    grads = {"autoencoder": grads, "logvar": logvar_grad}
    loss = nll + self.bottleneck_weight * bottleneck_loss
    metrics |= {"loss": loss, "bottleneck_loss": bottleneck_loss}
    metrics |= {"gradient_norm": optax.tree.norm(grads)} | adversarial
    metrics["learning_rate"] = self.optimizer.current_rate(state.opt)
    return self._updated(state, grads), metrics

  def measure(
    self, state: State, frozen: Frozen, batch: Batch, key: Array
  ) -> dict[str, Array]:
    """Held-out nll, and mean PSNR [dB] of reconstructions of the mode."""
    del key
    images = to_float(batch["image"])
    recon = self._reconstruct_mode(state, images)
    nll, _ = self._nll(recon, state.params["logvar"], images, frozen)
    levels = to_uint8(recon).astype(jnp.float32)
    mse = jnp.square(levels - batch["image"]).mean((1, 2, 3))
    return {"nll": nll, "psnr": 10 * jnp.log10(255.0**2 / mse).mean()}

  def preview(
    self, state: State, frozen: Frozen, batch: Batch, key: Array
  ) -> dict[str, Array]:
    """{"reconstructions"}: inputs left, their reconstructions right."""
    del frozen, key
    images = to_float(batch["image"])
    pair = [images, self._reconstruct_mode(state, images)]
    return {"reconstructions": jnp.concatenate(pair, axis=2)}

  def trained(self, state: State) -> Any:
    """The autoencoder's parameters to use: the average if there is one."""
    return state.params["autoencoder"] if state.ema is None else state.ema

  def _latent_shape(self, batch: Batch) -> tuple[int, int, int]:
    return self.autoencoder.latent_shape(*batch["image"].shape[1:3])

  def _reconstruct(self, batch: Batch, key: Array):
    """(variables, images) -> (reconstructions, bottleneck loss) of one key."""
    key_noise, key_drop = jax.random.split(key)
    shape = (len(batch["image"]), *self._latent_shape(batch))
    noise = jax.random.normal(key_noise, shape)

    def reconstruct(variables: Any, images: Array) -> tuple[Array, Array]:
      rngs = {"dropout": key_drop}
      return self.autoencoder.apply(variables, images, noise, rngs=rngs)

    return reconstruct

  def _reconstruct_mode(self, state: State, images: Array) -> Array:
    """Images decoded from the mode of their posterior."""
    variables = self.trained(state)
    posterior = self.autoencoder.apply(variables, images, method="encode")
    latents = posterior.mode()
    return self.autoencoder.apply(variables, latents, method="decode")

  def _nll(
    self, recon: Array, logvar: Array, images: Array, frozen: Frozen
  ) -> tuple[Array, dict[str, Array]]:
    """sum or mean of (|x - r|^p + LPIPS) / e^s + s, and its parts."""
    error = jnp.abs(images - recon)
    metrics = {"l1": error.mean()}
    each = error if self.pixel_norm == "l1" else jnp.square(error)
    if self.perceptual is not None:
      distance = self.perceptual.apply(frozen.perceptual, images, recon)
      metrics["lpips"] = distance.mean()
      each = each + self.perceptual_weight * distance[:, None, None, None]
    each = each / jnp.exp(logvar) + logvar
    total = each.sum() / len(images) if self.reduction == "sum" else each.mean()
    return total, metrics

  def _adversarial(
    self, state: State, images: Array, recon: Array, recon_grad: Array, pullback
  ) -> tuple[State, Array, dict[str, Array]]:
    """The adversarial part of a step, which counts from `disc_start` on.

    Until then it is computed and masked, as LDM does: compared with the
    autoencoder the discriminator costs little, and XLA:CPU runs convolutions
    inside a branch twenty times slower.

    Returns the state with its discriminator updated, the gradient at the
    reconstructions with that of g added, and metrics.
    """
    if self.discriminator is None:
      return state, recon_grad, {}
    is_on = state.step >= self.disc_start
    after, g_grad, metrics = self._discriminate(state, images, recon)
    weight = self._adaptive_weight(recon_grad, g_grad, pullback)
    metrics = {
      name: jnp.where(is_on, value, 0.0)
      for name, value in (metrics | {"d_weight": weight}).items()
    }
    scale = jnp.where(is_on, self.disc_weight * weight, 0.0)
    state = jax.tree.map(lambda x, y: jnp.where(is_on, x, y), after, state)
    return state, recon_grad + scale * g_grad, metrics

  def _discriminate(
    self, state: State, images: Array, recon: Array
  ) -> tuple[State, Array, dict[str, Array]]:
    """One forward pass of D at r serves both losses.

    Returns the state with its discriminator updated, the gradient of g at the
    reconstructions, and metrics.
    """
    apply = self.discriminator.apply
    fake, pull_fake = jax.vjp(apply, state.critic, recon)
    real, pull_real = jax.vjp(lambda c: apply(c, images), state.critic)

    g, at_fake = jax.value_and_grad(generator_loss)(fake)
    _, g_grad = pull_fake(at_fake)

    loss, (at_real, at_fake) = jax.value_and_grad(
      CRITIC_LOSSES[self.critic_loss], (0, 1)
    )(real, fake)
    grads = jax.tree.map(jnp.add, pull_real(at_real)[0], pull_fake(at_fake)[0])
    updates, critic_opt = self.critic_optimizer.build().update(
      grads, state.critic_opt, state.critic
    )
    state = state.replace(
      critic=optax.apply_updates(state.critic, updates), critic_opt=critic_opt
    )
    return state, g_grad, {"generator_loss": g, "discriminator_loss": loss}

  def _adaptive_weight(
    self, recon_grad: Array, g_grad: Array, pullback
  ) -> Float[Array, ""]:
    """d of the class docstring (Esser et al. 2021, eq. 7).

    Both gradients reach the last kernel through the reconstruction alone, so
    two pullbacks give them; all but that kernel's part is dead code, which
    the compiler removes.
    """

    def last_kernel(cotangent: Array) -> Array:
      (grads,) = pullback((cotangent, jnp.zeros(())))
      return grads["params"]["decoder"]["conv_out"]["kernel"]

    ratio = jnp.linalg.norm(last_kernel(recon_grad)) / (
      jnp.linalg.norm(last_kernel(g_grad)) + 1e-4
    )
    return jnp.clip(ratio, 0.0, 1e4)

  def _updated(self, state: State, grads: Any) -> State:
    """The state after an update of the autoencoder and of its average."""
    updates, opt = self.optimizer.build().update(grads, state.opt, state.params)
    params = optax.apply_updates(state.params, updates)
    if not self.learns_logvar:  # nor may weight decay move it
      params["logvar"] = state.params["logvar"]
    step, ema = state.step + 1, state.ema
    if self.ema_decay is not None:
      ema = ema_update(ema, params["autoencoder"], step, self.ema_decay)
    return state.replace(step=step, params=params, opt=opt, ema=ema)
