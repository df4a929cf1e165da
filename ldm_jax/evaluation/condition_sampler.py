"""Samples of a run for the conditions of given examples."""

from collections.abc import Callable, Collection, Mapping

import numpy as np
from jaxtyping import UInt8

from ldm_jax.nn.conditioners.conditioner import ConcatConditioner
from ldm_jax.nn.conditioners.source_image import SourceImage
from ldm_jax.nn.conditioners.spatial import LowResolution, MaskedImage
from ldm_jax.pretrained.open_model import open_run
from ldm_jax.run import Run
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

BATCH = 64
Images = UInt8[np.ndarray, "b h w 3"]
Examples = Mapping[str, np.ndarray]


class ConditionSampler:
  """Generates one image for the conditions of each example."""

  def __init__(
    self,
    run: Run,
    config: SamplingConfig,
    sharding: Sharding,
    classifier: str | None = None,
    is_unconditional: bool = False,
    trust: Collection[str] = (),
  ):
    """Opens the run; compiles nothing yet.

    Args:
      run: of a denoiser.
      classifier: a run of a classifier of noisy latents, which guides to the
        examples' labels.
      is_unconditional: whether every condition takes its unconditional value.
      trust: of the classifier's run, see `Run.open`.
    """
    loaded = open_run(run, sharding)
    self.model, self._config = loaded.model, config
    self._is_unconditional = is_unconditional
    self._has_classifier, opened = classifier is not None, None
    if classifier is not None:
      scale = float(loaded.params.latent_scale)
      opened = open_classifier(classifier, scale, sharding, trust)
    self._engine = SamplingEngine(
      loaded.model, loaded.params, sharding, classifier=opened
    )

  def network_calls(self, count: int) -> int:
    """Evaluations of the network, by batch, for `count` images."""
    size = self._engine.batch_size(GenerationInputs(count, BATCH))
    return -(-count // size) * self._engine.network_calls(self._config)

  def generate(
    self,
    examples: Examples,
    first: int = 0,
    progress: Callable[[int], None] = lambda calls: None,
  ) -> Images:
    """One image for each example.

    Args:
      first: index of the first image; an image is a function of (seed, index).
      progress: called with the number of evaluations just done.
    """
    count = len(examples["image"])
    conditioners = [
      c for c in self.model.conditioners if not isinstance(c, ConcatConditioner)
    ]
    raw = {c.input_key: examples[c.input_key] for c in conditioners}
    nulls = {
      c.input_key: np.full(count, c.has_unconditional) for c in conditioners
    }
    given = {name: np.zeros(count, bool) for name in raw}
    positive = Conditioning(raw, nulls if self._is_unconditional else given)
    images = self._engine.generate(
      self._config,
      positive,
      Conditioning(raw, nulls),
      self._inputs(examples, first),
      Progress(lambda calls, _: progress(calls)),
    )
    return np.concatenate(list(images))

  def check(self, examples: Examples) -> None:
    """Raises ValueError if no images can be generated for such examples."""
    self._engine.check(self._config, self._inputs(examples, 0))

  def _inputs(self, examples: Examples, first: int) -> GenerationInputs:
    labels = examples["label"] if self._has_classifier else None
    return GenerationInputs(
      len(examples["image"]),
      BATCH,
      image_inputs=self._image_inputs(examples),
      labels=labels,
      first=first,
    )

  def _image_inputs(self, examples: Examples) -> ImageInputs:
    """The images that inpainting, upscaling and editing are given."""
    if part := self.model.find_conditioner(MaskedImage):
      return ImageInputs(examples["image"], examples[part.input_key])
    for kind in (LowResolution, SourceImage):
      if part := self.model.find_conditioner(kind):
        return ImageInputs(examples[part.input_key])
    return ImageInputs()
