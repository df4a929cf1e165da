"""Optional terms of stage one's loss, about latents."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ldm_jax.nn.first_stage import FirstStage
from ldm_jax.training.first_stage.adversarial_loss import norm_ratio
from ldm_jax.training.first_stage.trainable_parameters import replace, select

Batch = Mapping[str, Any]  # arrays [b ...], or their shapes
Images = Float[Array, "b h w 3"]

LAST_KERNEL = ("encoder", "conv_out", "kernel")  # that adaptive weights compare
LARGEST_RATIO = 1e8
FIRST_KEY = 2  # the task splits its keys in two, which are fold_in's 0 and 1


class RegularizerInputs(NamedTuple):
  """What a regularizer's loss is a function of, with its own parameters.

  Attributes:
    autoencoder: the first stage.
    variables: of it.
    images: in [-1, 1].
    key: of this step and this regularizer.
    nll: (images, reconstructions) -> the task's nll at this step, pixel and
      perceptual term, as a mean over values. It takes any size.
  """

  autoencoder: FirstStage
  variables: Any
  images: Images
  key: Array
  nll: Callable[[Images, Images], Float[Array, ""]]

  def sampled_latents(self, key: Array) -> Float[Array, "b h w c"]:
    """Latents of the images, sampled from their posterior."""
    posterior = self.autoencoder.apply(
      self.variables, self.images, method="encode"
    )
    size = self.autoencoder.latent_shape(*self.images.shape[1:3])
    return posterior.sample(
      jax.random.normal(key, (len(self.images), *size))
    ).astype(jnp.float32)


@runtime_checkable
class Regularizer(Protocol):
  """A term that is added to the loss of `AutoencoderTask`.

  A frozen dataclass, so that a config can hold it.

  Attributes:
    weight: of the term.
    is_adaptive: whether the weight is multiplied by |dnll/dW| / |dloss/dW|,
      taken as a constant, with W the encoder's last kernel; then the task's
      `reduction` does not count.
  """

  @property
  def weight(self) -> float: ...

  @property
  def is_adaptive(self) -> bool: ...

  def init(self, key: Array, task: Any, batch: Batch) -> Any:
    """Parameters of its own that are trained with the autoencoder, or {}.

    Args:
      task: the AutoencoderTask.

    Raises:
      ValueError: the term is not defined for this task, or for images of this
        batch's size.
    """
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
    self, inputs: RegularizerInputs, own: Any, frozen: Any
  ) -> tuple[Float[Array, ""], dict[str, Array]]:
    """The loss, a mean over the batch, and metrics.

    Args:
      own: what `init` made.
      frozen: what `load_frozen` read.
    """
    ...


class Scales(NamedTuple):
  """What multiplies losses with the regularizers' own weights.

  Attributes:
    common: of every loss: the weight of the step.
    values: of those that are not adaptive, so that they count as nll does.
    of_nll: () -> (nll's gradient,) of what is trained of the autoencoder.
  """

  common: Array
  values: int
  of_nll: Callable[[], tuple[Any]]


def initial_parameters(
  task: Any, variables: Any, key: Array, batch: Batch
) -> list[Any]:
  """What `init` of a task's regularizers makes, each of a key of its own.

  Raises:
    ValueError: a term is not defined for this task or batch, or a weight is
      adaptive and the autoencoder's variables have no last kernel.
  """
  if any(part.is_adaptive for part in task.regularizers):
    _encoder_kernel(variables)
  return [
    part.init(jax.random.fold_in(key, FIRST_KEY + i), task, batch)
    for i, part in enumerate(task.regularizers)
  ]


def check_trained(
  parts: Sequence[Regularizer], prefixes: Sequence[str]
) -> None:
  """Raises ValueError if an adaptive weight's kernel is not trained."""
  kernel = "/".join(LAST_KERNEL)
  if prefixes and not kernel.startswith(tuple(prefixes)):
    for part in parts:
      if part.is_adaptive:
        raise ValueError(
          f"trains={tuple(prefixes)} leaves out encoder/conv_out, which weighs "
          f"{type(part).__name__}; add it, or remove the regularizer"
        )


def _encoder_kernel(variables: Any) -> Array:
  """The encoder's last kernel, or the gradient at it.

  Raises:
    ValueError: the first stage has none.
  """
  found = variables.get("params", {})
  for name in LAST_KERNEL:
    if name not in found:
      raise ValueError(
        f"an adaptive weight needs the kernel {'/'.join(LAST_KERNEL)}, which "
        "this first stage does not have; set is_adaptive=False"
      )
    found = found[name]
  return found


def regularize(
  parts: Sequence[Regularizer],
  inputs: RegularizerInputs,
  trees: tuple[Sequence, Sequence],
  scales: Scales,
  trained: tuple[Mapping[str, Any], Sequence[str]],
) -> tuple[Array, dict[str, Array], dict[str, Any]]:
  """The weighted sum of regularizers' losses, all metrics, and gradients.

  Args:
    inputs: with the key of the step, of which each part gets its own.
    trees: the parts' own parameters, and their frozen ones.
    trained: gradients of the other terms, with "autoencoder", and the prefixes
      of its parameters that are trained.

  Returns:
    The sum, metrics, and gradients with the sum's: of the autoencoder, and of
    the parts' own parameters as "regularizers".
  """
  gradients, prefixes = trained
  selected = select(inputs.variables, prefixes)
  total, metrics, of_own = jnp.zeros(()), {}, []
  of_selected = gradients["autoencoder"]
  for i, (part, own, frozen) in enumerate(zip(parts, *trees, strict=True)):
    given = inputs._replace(key=jax.random.fold_in(inputs.key, FIRST_KEY + i))
    (loss, found), (gradient, gradient_of_own) = _gradient(
      part, given, (selected, own), frozen
    )
    weight, measured = _weight(part, gradient, scales)
    metrics |= found | measured
    total += weight * loss
    add = lambda a, b, weight=weight: a + weight * b
    of_selected = jax.tree.map(add, of_selected, gradient)
    scale = lambda g, weight=weight: weight * g
    of_own.append(jax.tree.map(scale, gradient_of_own))
  gradients = {**gradients, "autoencoder": of_selected, "regularizers": of_own}
  return total, metrics, gradients


def _gradient(
  part: Regularizer,
  inputs: RegularizerInputs,
  trained: tuple[Any, Any],
  frozen: Any,
) -> tuple[tuple[Array, dict[str, Array]], tuple[Any, Any]]:
  """(loss, metrics), and gradients of what is trained of both networks."""

  def loss(selected: Any, own: Any) -> tuple[Array, dict[str, Array]]:
    whole = replace(inputs.variables, selected)
    return part.loss(inputs._replace(variables=whole), own, frozen)

  return jax.value_and_grad(loss, (0, 1), has_aux=True)(*trained)


def _weight(
  part: Regularizer, gradient: Any, scales: Scales
) -> tuple[Array, dict[str, Array]]:
  """The factor of a part's loss, and what was measured for it."""
  weight = scales.common * part.weight
  if not part.is_adaptive:
    return weight * scales.values, {}
  (of_nll,) = scales.of_nll()
  pair = _encoder_kernel(of_nll), _encoder_kernel(gradient)
  ratio = norm_ratio(*pair, LARGEST_RATIO)
  return weight * ratio, {"regularizer_ratio": ratio}
