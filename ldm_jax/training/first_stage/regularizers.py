"""Optional terms of stage one's loss, about latents."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ldm_jax.nn.first_stage import FirstStage
from ldm_jax.training.first_stage.trainable_parameters import replace, select

Batch = Mapping[str, Any]  # arrays [b ...], or their shapes


@runtime_checkable
class Regularizer(Protocol):
  """A term that is added to the loss of `AutoencoderTask`.

  A frozen dataclass, so that a config can hold it.

  Attributes:
    weight: of the term.
  """

  @property
  def weight(self) -> float: ...

  def init(self, key: Array, autoencoder: FirstStage, batch: Batch) -> Any:
    """Parameters of its own that are trained with the autoencoder, or {}."""
    ...

  def frozen_shapes(self, batch: Batch) -> Any:
    """Shapes of parameters that are not trained, or {}."""
    ...

  def load_frozen(self) -> Any:
    """Those parameters.

    Raises:
      ConfigError, WeightsError: its files are missing or malformed.
    """
    ...

  def loss(
    self,
    autoencoder: FirstStage,
    variables: Any,
    own: Any,
    frozen: Any,
    images: Float[Array, "b h w 3"],
    key: Array,
  ) -> tuple[Float[Array, ""], dict[str, Array]]:
    """The loss of images in [-1, 1], a mean over the batch, and metrics.

    Args:
      variables: of the autoencoder.
      own: what `init` made.
      frozen: what `load_frozen` read.
    """
    ...


def initial_parameters(
  parts: Sequence[Regularizer],
  key: Array,
  autoencoder: FirstStage,
  batch: Batch,
) -> list[Any]:
  """What the parts' `init` makes, each of a key of its own."""
  return [
    part.init(jax.random.fold_in(key, i), autoencoder, batch)
    for i, part in enumerate(parts)
  ]


def regularization_gradient(
  parts: Sequence[Regularizer],
  trained: tuple[FirstStage, Sequence[str]],
  trees: tuple[Any, Sequence, Sequence],
  images: Float[Array, "b h w 3"],
  key: Array,
) -> tuple[tuple[Array, dict[str, Array]], tuple[Any, Sequence]]:
  """The weighted sum of regularizers' losses and all metrics, and gradients.

  Args:
    trained: the autoencoder, and what of it is trained.
    trees: its variables; the parts' own parameters; and their frozen ones.
    key: of the step; each part has a key of its own.

  Returns:
    (sum, metrics), and the sum's gradients of what is trained and of the parts'
    own parameters.
  """
  (autoencoder, prefixes), (variables, own, frozen) = trained, trees

  def total(selected: Any, own: Sequence) -> tuple[Array, dict[str, Array]]:
    whole, losses, metrics = replace(variables, selected), jnp.zeros(()), {}
    for i, part in enumerate(parts):
      given = whole, own[i], frozen[i], images
      of_part = jax.random.fold_in(key, 1 + i)
      loss, found = part.loss(autoencoder, *given, of_part)
      losses, metrics = losses + part.weight * loss, metrics | found
    return losses, metrics

  gradient = jax.value_and_grad(total, (0, 1), has_aux=True)
  return gradient(select(variables, prefixes), own)
