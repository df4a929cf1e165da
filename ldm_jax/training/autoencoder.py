"""Stage one: the autoencoder and its patch discriminator, in one step."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from ldm_jax.fields.limits import Below1, Natural, NonNegative
from ldm_jax.nn.autoencoder import Autoencoder
from ldm_jax.nn.discriminator import PatchDiscriminator
from ldm_jax.nn.encoders.lpips import LPIPS
from ldm_jax.nn.first_stage import FirstStage
from ldm_jax.pixels import to_float, to_uint8
from ldm_jax.runtime.optimizer import Optimizer, ema_update
from ldm_jax.training.first_stage.adversarial_loss import (
  CriticLoss,
  adaptive_weight,
  discriminate,
  update_if,
)
from ldm_jax.training.first_stage.autoencoder_state import Frozen, State
from ldm_jax.training.first_stage.reconstruction_loss import ReconstructionLoss
from ldm_jax.training.first_stage.regularizers import (
  Batch,
  Regularizer,
  RegularizerInputs,
  Scales,
  check_trained,
  initial_parameters,
  regularize,
)
from ldm_jax.training.first_stage.trainable_parameters import replace, select


@dataclasses.dataclass(frozen=True)
class AutoencoderTask(ReconstructionLoss):
  """Rombach et al. 2022, section 3.1 and eq. 25, with LDM's reductions.

  nll is that of `ReconstructionLoss`. The autoencoder descends

    nll + bottleneck_weight b + disc_weight d g,   g = -mean D(r),
    d = clip(|dnll / dW| / (|dg / dW| + 1e-4), 0, 1e4)

  with b the bottleneck's loss, W the decoder's last kernel and d taken as a
  constant; g enters at `disc_start`. The discriminator descends its own loss
  on the same r.

  Attributes:
    autoencoder: a first stage; `Autoencoder` where there is a discriminator.
      None takes that of the model to begin from (`Experiment.start`).
    discriminator: D, or None.
    optimizer: LDM's is Adam (0.5, 0.9) at 4.5e-6 times the batch.
    logvar: s; a constant in LDM, where it is in no optimizer.
    learns_logvar: train s as well (Stability's later configs).
    disc_start: the step from which the adversarial terms count. Until then the
      discriminator is not trained.
    ema_decay: of a moving average of the autoencoder, or None for none.
    init_scale: factor on the autoencoder's initial kernels. 1 is PyTorch's
      initialisation, which LDM kept; 3^0.5 keeps the variance of activations
      through the layers, and small runs learn faster from there.
    trains: what is trained, as prefixes of parameters' paths; () is everything,
      ("decoder",) leaves the latents as they are, and ("decoder/up_0",
      "decoder/norm_out", "decoder/conv_out") trains the decoder's last blocks.
      All else keeps every bit.
    regularizers: terms of latents; their losses are means, and count as often
      as an image has values where `reduction` is "sum".
    continues_discriminator: begin with the discriminator of the run to begin
      from, instead of a fresh one.
  """

  autoencoder: FirstStage | None = Autoencoder()
  perceptual: LPIPS | None = LPIPS()
  discriminator: PatchDiscriminator | None = PatchDiscriminator()
  optimizer: Optimizer = Optimizer(4.5e-6, (0.5, 0.9), weight_decay=0.0)
  critic_optimizer: Optimizer = Optimizer(4.5e-6, (0.5, 0.9), weight_decay=0.0)
  logvar: float = 0.0
  learns_logvar: bool = False
  disc_start: Natural = 50_001
  critic_loss: CriticLoss = "hinge"
  ema_decay: Below1 | None = None
  init_scale: NonNegative = 1.0
  trains: tuple[str, ...] = ()
  regularizers: tuple[Regularizer, ...] = ()
  continues_discriminator: bool = False

  def __post_init__(self):
    last = "decoder/conv_out/kernel".startswith(self.trains or "")
    if self.discriminator is not None and not last:
      raise ValueError(
        f"trains={self.trains} leaves out decoder/conv_out, which weighs the "
        "adversarial loss; add it, or set discriminator=None"
      )
    check_trained(self.regularizers, self.trains)

  def frozen_shapes(self, batch: Batch) -> Frozen:
    """Shapes of `frozen` for batches like this one."""
    images = jax.ShapeDtypeStruct(batch["image"].shape, jnp.float32)
    perceptual = None
    if (lpips := self.perceptual) is not None:
      perceptual = jax.eval_shape(lpips.init, jax.random.key(0), images, images)
    own = [part.frozen_shapes(batch) for part in self.regularizers]
    return Frozen(perceptual, own or None)

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
    if self.regularizers:
      own = initial_parameters(self, variables, key, batch)
      params["regularizers"] = own
    critic = critic_opt = None
    if self.discriminator is not None:
      critic = self.discriminator.init(key_critic, images)
      critic_opt = self.critic_optimizer.build().init(critic)
    return State(
      step=jnp.zeros((), jnp.int32),
      params=params,
      opt=self.optimizer.build().init(self._selected(params)),
      ema=None if self.ema_decay is None else variables,
      critic=critic,
      critic_opt=critic_opt,
    )

  def with_start(self, state: State, start: Mapping[str, Any]) -> State:
    """A new state that begins with other parameters.

    Args:
      start: "autoencoder", and "critic" if that is continued.
    """
    params = state.params | {"autoencoder": start["autoencoder"]}
    ema = None if self.ema_decay is None else start["autoencoder"]
    return state.replace(
      params=params, ema=ema, critic=start.get("critic", state.critic)
    )

  def step(
    self, state: State, frozen: Frozen, batch: Batch, key: Array
  ) -> tuple[State, dict[str, Array]]:
    """One update of autoencoder and discriminator, from one forward pass."""
    images = to_float(batch["image"])
    reconstruct = self._reconstruct(batch, key)
    variables = state.params["autoencoder"]
    (recon, bottleneck_loss), pullback = jax.vjp(
      lambda selected: reconstruct(replace(variables, selected), images),
      select(variables, self.trains),
    )
    (nll, metrics), (recon_grad, logvar_grad) = jax.value_and_grad(
      self._nll, (0, 1), has_aux=True
    )(recon, state.params["logvar"], images, frozen, state.step)

    of_nll = functools.partial(pullback, (recon_grad, jnp.zeros(())))
    state, recon_grad, adversarial = self._adversarial(
      state, images, recon, recon_grad, pullback
    )
    bottleneck_weight = self.weight("bottleneck", state.step)
    (grads,) = pullback((recon_grad, bottleneck_weight))
    # A constant does not count in the norm that is clipped.
    logvar_grad = jnp.where(self.learns_logvar, logvar_grad, 0.0)
    grads = {"autoencoder": grads, "logvar": logvar_grad}
    loss = nll + bottleneck_weight * bottleneck_loss
    if self.regularizers:
      given = state, frozen, images, key
      term, parts, grads = self._regularized(given, grads, of_nll)
      loss, metrics = loss + term, metrics | parts
    metrics |= {"loss": loss, "bottleneck_loss": bottleneck_loss} | adversarial
    metrics["gradient_norm"] = optax.tree.norm(grads)
    metrics["learning_rate"] = self.optimizer.current_rate(state.opt)
    return self._updated(state, grads), metrics

  def measure(
    self, state: State, frozen: Frozen, batch: Batch, key: Array
  ) -> dict[str, Array]:
    """Held-out nll, and mean PSNR [dB] of reconstructions of the mode."""
    del key
    images = to_float(batch["image"])
    recon = self._reconstruct_mode(state, images)
    scale, n = state.params["logvar"], state.step
    nll, _ = self._nll(recon, scale, images, frozen, n)
    levels = to_uint8(recon).astype(jnp.float32)
    mse = jnp.square(levels - batch["image"]).mean((1, 2, 3))
    return {"nll": nll, "psnr": 10 * jnp.log10(255.0**2 / mse).mean()}

  def preview(
    self, state: State, frozen: Frozen, batch: Batch, key: Array
  ) -> dict[str, Array]:
    """{"reconstructions"}: inputs left, their reconstructions right."""
    del frozen, key
    images = to_float(batch["image"])
    pair = images, self._reconstruct_mode(state, images)
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
    self, recon: Array, logvar: Array, images: Array, frozen: Frozen, n: Array
  ) -> tuple[Array, dict[str, Array]]:
    """The class docstring's nll at step n, and its parts."""
    distance = None
    if self.perceptual is not None:
      distance = self.perceptual.apply(frozen.perceptual, images, recon)
    return self.negative_log_likelihood(images - recon, distance, logvar, n)

  def _adversarial(
    self, state: State, images: Array, recon: Array, recon_grad: Array, pullback
  ) -> tuple[State, Array, dict[str, Array]]:
    """The adversarial part of a step, which counts from `disc_start` on.

    Returns the state with its discriminator updated, the gradient at the
    reconstructions with that of g added, and metrics.
    """
    if self.discriminator is None:
      return state, recon_grad, {}
    is_on = state.step >= self.disc_start
    before = state.critic, state.critic_opt
    learning = self.critic_optimizer, self.critic_loss
    after, g_grad, metrics = discriminate(
      self.discriminator, learning, before, images, recon
    )
    weight = adaptive_weight(recon_grad, g_grad, pullback)
    metrics |= {"d_weight": weight}
    (critic, opt), metrics = update_if(is_on, before, after, metrics)
    scale = self.weight("adversarial", state.step) * metrics["d_weight"]
    state = state.replace(critic=critic, critic_opt=opt)
    return state, recon_grad + scale * g_grad, metrics

  def _regularized(
    self, given: tuple, grads: Any, of_nll: Callable[[], Any]
  ) -> tuple[Array, dict[str, Array], Any]:
    """The weighted sum of the regularizers, metrics, gradients with theirs."""
    state, frozen, images, key = given
    own, s, n = state.params, state.params["logvar"], state.step
    nll = lambda x, r: self._nll(r, s, x, frozen, n)[0] / self.values(x)
    return regularize(
      self.regularizers,
      RegularizerInputs(self.autoencoder, own["autoencoder"], images, key, nll),
      (own["regularizers"], frozen.regularizers),
      Scales(self.weight("regularization", n), self.values(images), of_nll),
      (grads, self.trains),
    )

  def _selected(self, params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that the optimizer sees."""
    own = select(params["autoencoder"], self.trains)
    return {**params, "autoencoder": own}

  def _updated(self, state: State, grads: Any) -> State:
    """The state after an update of the autoencoder and of its average."""
    before = self._selected(state.params)
    updates, opt = self.optimizer.build().update(grads, state.opt, before)
    after = optax.apply_updates(before, updates)
    if not self.learns_logvar:  # nor may weight decay move it
      after["logvar"] = before["logvar"]
    step, ema, selected = state.step + 1, state.ema, after["autoencoder"]
    if self.ema_decay is not None:
      average = select(ema, self.trains)
      average = ema_update(average, selected, step, self.ema_decay)
      ema = replace(ema, average)
    after["autoencoder"] = replace(state.params["autoencoder"], selected)
    return state.replace(step=step, params=after, opt=opt, ema=ema)
