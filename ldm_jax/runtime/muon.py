"""Muon as in optax, traced once for each shape of a kernel."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jaxtyping import Array

from ldm_jax.fields.stack_names import STACK

BETA = 0.95  # of the momentum
STEPS = 3  # with this preconditioning as good as 5, at 2/3 the cost


def muon(
  rate: optax.Schedule,
  adamw: optax.GradientTransformation,
  *,
  weight_decay: float,
  epsilon: float,
) -> optax.GradientTransformation:
  """Muon (Jordan et al. 2024) for kernels, `adamw` for all other leaves.

  State and updates are those of `optax.contrib.muon`, bit for bit. Updates are
  as long as AdamW's (Liu et al. 2025, section 2.2).

  Args:
    rate: learning rate of Muon.
    epsilon: added to denominators.
  """
  kernels = optax.chain(
    _scale_by_muon(epsilon),
    optax.identity(),  # optax scales here; the state's tree stays equal
    optax.add_decayed_weights(weight_decay),
    optax.scale_by_learning_rate(rate),
  )
  return optax.partition({"muon": kernels, "adam": adamw}, _labels)


def _labels(params: Any) -> Any:
  """ "muon" for kernels, "adam" for the rest.

  The first and the last convolution are AdamW's: they map data to features and
  features to data, for which Muon's norm from features to features is not
  meant.
  """

  def label(path: Any, leaf: jax.Array) -> str:
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    is_other = re.search(r"conv_(in|out)/|(?<!kernel)$", name)
    return "adam" if leaf.ndim < 2 or is_other else "muon"

  return jax.tree_util.tree_map_with_path(label, params)


def _scale_by_muon(epsilon: float) -> optax.GradientTransformation:
  """Orthogonal updates along Nesterov's momentum, as long as AdamW's."""

  def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    """The updates and the state with their momentum."""
    del params
    momentum = optax.tree.update_moment(grads, state.mu, BETA, 1)
    count = optax.safe_increment(state.count)
    ahead = jax.tree.map(
      lambda m, g: BETA * m + (1 - BETA) * g,
      optax.tree.bias_correction(momentum, BETA, optax.safe_increment(count)),
      optax.tree.bias_correction(grads, BETA, count),
    )

    def direction(path: Any, leaf: Array) -> Array:
      """Of a kernel, or of each kernel of a stack of blocks."""
      one = lambda kernel: _as_long_as_adamw(
        _orthogonal(kernel, state.ns_coeffs, epsilon)
      )
      name = jax.tree_util.keystr(path, simple=True, separator="/")
      return (jax.vmap(one) if STACK.search(name) else one)(leaf)

    updates = jax.tree_util.tree_map_with_path(direction, ahead)
    return updates, state._replace(count=count, mu=momentum)

  init = optax.contrib.scale_by_muon(ns_steps=STEPS, eps=epsilon).init
  return optax.GradientTransformation(init, update)


def _as_long_as_adamw(update: Array) -> Array:
  """0.2 max(inputs, outputs)^0.5 times an orthogonal update."""
  outputs = update.shape[-1]
  longest = max(update.size // outputs, outputs)
  return jnp.sqrt(longest) * 0.2 * update


@functools.partial(jax.jit, static_argnames="epsilon")
def _orthogonal(kernel: Array, coefficients: Array, epsilon: float) -> Array:
  """About U V^T of a kernel U S V^T, as a matrix of inputs times outputs.

  optax's transformation without momentum. Jitted, so that one trace serves all
  kernels of a shape: the iterations are most of what there is to trace in an
  optimizer.
  """
  alone = optax.contrib.scale_by_muon(
    ns_steps=STEPS,
    beta=0.0,
    preconditioning="aol",
    eps=epsilon,
    nesterov=False,
    weight_dimension_numbers=optax.contrib.MuonDimensionNumbers(
      tuple(range(kernel.ndim - 1)), kernel.ndim - 1
    ),
  )
  none = jnp.zeros_like(kernel)
  state = optax.contrib.MuonState(jnp.int32(0), none, coefficients)
  return alone.update(kernel, state)[0]
