"""What a run makes of examples: reconstructions, and pictures drawn anew."""

from collections.abc import Callable, Mapping

import jax
import numpy as np
from jaxtyping import UInt8

from ldm_jax.nn.conditioners.conditioner import ConcatConditioner
from ldm_jax.nn.conditioners.spatial import LowResolution, MaskedImage
from ldm_jax.pixels import to_float, to_uint8
from ldm_jax.pretrained.open_model import open_run
from ldm_jax.run import Run
from ldm_jax.runtime.devices import processes
from ldm_jax.runtime.devices.sharding import Sharding
from ldm_jax.sampling import (
  Conditioning,
  GenerationInputs,
  ImageInputs,
  Progress,
  SamplingConfig,
  SamplingEngine,
)
from ldm_jax.sampling.inputs.condition_inputs import open_classifier
from ldm_jax.training.autoencoder import AutoencoderTask

BATCH = 64
Images = UInt8[np.ndarray, "b h w 3"]
Examples = Mapping[str, np.ndarray]


def restorer(run: Run, sharding: Sharding) -> Callable[[Images], Images]:
  """A run's first stage: pictures through it and back, by the posterior's
  mode, a batch of the same size each time."""
  task = run.experiment.task
  if isinstance(task, AutoencoderTask):
    model, params = task.autoencoder, run.trained(sharding)
  else:
    model, params = task.first_stage, run.frozen(sharding).first_stage

  @jax.jit
  def restore(params, images: jax.Array) -> jax.Array:
    latents = model.apply(params, to_float(images), method="encode").mode()
    return to_uint8(model.apply(params, latents, method="decode"))

  def restored(images: Images) -> Images:
    parts = []
    for begin in range(0, len(images), BATCH):
      part = filled(images[begin : begin + BATCH], min(BATCH, len(images)))
      found = processes.gather(restore(params, sharding.distribute(part)))
      parts.append(found[: len(images) - begin])
    return np.concatenate(parts)

  return restored


def filled(rows: np.ndarray, count: int) -> np.ndarray:
  """`count` rows, the last one again where there are fewer."""
  return rows[np.minimum(np.arange(count), len(rows) - 1)]


class Reconstructor:
  """Draws pictures for what a run is told of examples."""

  def __init__(
    self,
    run: Run,
    settings: SamplingConfig,
    sharding: Sharding,
    classifier: str | None = None,
    is_null: bool = False,
  ):
    """Opens the run; compiles nothing yet.

    Args:
      classifier: a run of one, which leads to the examples' labels.
      is_null: whether nothing is said.
    """
    opened = open_run(run, sharding)
    self.model, self._settings = opened.model, settings
    self._is_null, self._led = is_null, classifier is not None
    guide = None
    if classifier is not None:
      scale = float(opened.params.latent_scale)
      guide = open_classifier(classifier, scale, sharding)
    self._studio = SamplingEngine(
      opened.model, opened.params, sharding, classifier=guide
    )

  def questions(self, count: int) -> int:
    """How often the network is asked for `count` pictures."""
    batches = -(
      -count // self._studio.batch_size(GenerationInputs(count, BATCH))
    )
    return batches * self._studio.network_calls(self._settings)

  def draw(
    self,
    examples: Examples,
    first: int = 0,
    progress: Callable[[int], None] = lambda rows: None,
  ) -> Images:
    """One picture for each example; `first` is the number of the first one."""
    count = len(examples["image"])
    parts = [
      p for p in self.model.conditioners if not isinstance(p, ConcatConditioner)
    ]
    raw = {part.input_key: examples[part.input_key] for part in parts}
    nulls = {
      part.input_key: np.full(count, part.has_unconditional) for part in parts
    }
    never = {name: np.zeros(count, bool) for name in raw}
    positive = Conditioning(raw, nulls if self._is_null else never)
    order = self._order(examples, first)
    drawn = self._studio.generate(
      self._settings,
      positive,
      Conditioning(raw, nulls),
      order,
      Progress(lambda calls, _: progress(calls)),
    )
    return np.concatenate(list(drawn))

  def check(self, examples: Examples) -> None:
    """Raises ValueError if examples like these lead to no pictures."""
    self._studio.check(self._settings, self._order(examples, 0))

  def _order(self, examples: Examples, first: int) -> GenerationInputs:
    labels = examples["label"] if self._led else None
    return GenerationInputs(
      len(examples["image"]),
      BATCH,
      image_inputs=self._given(examples),
      labels=labels,
      first=first,
    )

  def _given(self, examples: Examples) -> ImageInputs:
    if part := self.model.find_conditioner(MaskedImage):
      return ImageInputs(examples["image"], examples[part.input_key])
    if part := self.model.find_conditioner(LowResolution):
      return ImageInputs(examples[part.input_key])
    return ImageInputs()
