"""The discriminator's part of a step of stage one."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from ldm_jax.nn.discriminator import (
  PatchDiscriminator,
  generator_loss,
  hinge_loss,
  vanilla_loss,
)
from ldm_jax.runtime.optimizer import Optimizer

CriticLoss = Literal["hinge", "vanilla"]
CRITIC_LOSSES = {"hinge": hinge_loss, "vanilla": vanilla_loss}
Images = Float[Array, "b h w 3"]


def discriminate(
  discriminator: PatchDiscriminator,
  learning: tuple[Optimizer, CriticLoss],
  critic: tuple[Any, Any],
  images: Images,
  recon: Images,
) -> tuple[tuple[Any, Any], Images, dict[str, Array]]:
  """One forward pass of D at the reconstructions serves both losses.

  Args:
    learning: how D is updated.
    critic: parameters of D, and the state of its optimizer.

  Returns:
    The same after an update, the gradient of g = -mean D(r) at the
    reconstructions, and metrics.
  """
  (optimizer, critic_loss), (params, state) = learning, critic
  apply = discriminator.apply
  fake, pull_fake = jax.vjp(apply, params, recon)
  real, pull_real = jax.vjp(lambda c: apply(c, images), params)

  g, at_fake = jax.value_and_grad(generator_loss)(fake)
  _, g_grad = pull_fake(at_fake)

  loss, (at_real, at_fake) = jax.value_and_grad(
    CRITIC_LOSSES[critic_loss], (0, 1)
  )(real, fake)
  grads = jax.tree.map(jnp.add, pull_real(at_real)[0], pull_fake(at_fake)[0])
  updates, state = optimizer.build().update(grads, state, params)
  after = optax.apply_updates(params, updates), state
  return after, g_grad, {"generator_loss": g, "discriminator_loss": loss}


def update_if(
  is_on: Array,
  before: tuple[Any, Any],
  after: tuple[Any, Any],
  metrics: dict[str, Array],
) -> tuple[tuple[Any, Any], dict[str, Array]]:
  """`after` and the metrics where the adversarial term counts, before and 0.

  Computed and masked, as LDM does: compared with the autoencoder the
  discriminator costs little, and XLA:CPU runs convolutions inside a branch
  twenty times slower.
  """
  keep = lambda new, old: jnp.where(is_on, new, old)
  masked = {name: keep(value, 0.0) for name, value in metrics.items()}
  return jax.tree.map(keep, after, before), masked


def adaptive_weight(
  recon_grad: Images, g_grad: Images, pullback: Callable
) -> Float[Array, ""]:
  """clip(|dnll / dW| / (|dg / dW| + 1e-4), 0, 1e4)  (Esser et al. 2021, eq. 7).

  W is the decoder's last kernel. Both gradients reach it through the
  reconstruction alone, so two pullbacks give them; all but that kernel's part
  is dead code, which the compiler removes.

  Args:
    pullback: of (gradient at the reconstructions, at the bottleneck's loss) to
      the autoencoder's variables.
  """

  def last_kernel(cotangent: Array) -> Array:
    (grads,) = pullback((cotangent, jnp.zeros(())))
    return grads["params"]["decoder"]["conv_out"]["kernel"]

  return norm_ratio(last_kernel(recon_grad), last_kernel(g_grad), 1e4)


def norm_ratio(
  reference: Array, gradient: Array, largest: float
) -> Float[Array, ""]:
  """clip(|a| / (|b| + 1e-4), 0, largest) of two gradients of one kernel."""
  ratio = jnp.linalg.norm(reference) / (jnp.linalg.norm(gradient) + 1e-4)
  return jnp.clip(ratio, 0.0, largest)
