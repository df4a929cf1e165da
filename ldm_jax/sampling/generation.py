"""A request that is ready to run, and its batches of images."""

import dataclasses
import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

from ldm_jax.diffusion.samplers import CHUNK_ROWS
from ldm_jax.errors import NonFinite
from ldm_jax.latent_diffusion import Parameters
from ldm_jax.loaded_model import LoadedModel
from ldm_jax.runtime.devices import processes
from ldm_jax.sampling.engine import SamplingEngine
from ldm_jax.sampling.inputs.class_labels import with_class_number
from ldm_jax.sampling.inputs.condition_groups import condition_groups
from ldm_jax.sampling.inputs.image_inputs import RequestImages
from ldm_jax.sampling.inputs.resolve_request import (
  check_model,
  condition_inputs,
  generation_inputs,
  prompt_lists,
  sampling_config,
  with_model_defaults,
)
from ldm_jax.sampling.metadata import image_metadata, request_metadata
from ldm_jax.sampling.outputs import GenerationBatch
from ldm_jax.sampling.preview_decoder import PreviewDecoder
from ldm_jax.sampling.request import GenerationRequest, Replay
from ldm_jax.sampling.sampling_config import (
  ConditionGroup,
  GenerationInputs,
  SamplingConfig,
)
from ldm_jax.sampling.steps.pieces import Progress

logger = logging.getLogger(__name__)

# (name, scale) of LoRAs to the model's parameters with them; None without any.
MergedParameters = Callable[[tuple[tuple[str, float], ...]], Parameters | None]

# (network calls finished, of how many, a preview of x0, uint8 [b h w 3])
Callback = Callable[[int, int, UInt8[np.ndarray, "b h w 3"] | None], None]


@dataclasses.dataclass(frozen=True)
class Generation:
  """A request that has been checked against its model and is ready to run.

  Attributes:
    request: with the model's defaults written out.
    fields: of the metadata of every image.
    prompts: one per image, or none.
    network_calls: evaluations of the network in all.
    groups: images whose prompts have as many chunks, which are generated
      together, so that no image depends on the length of another's prompt.
    parameters: of the model with the LoRAs that prompts name.
  """

  request: GenerationRequest
  fields: Mapping[str, Any]
  prompts: Sequence[str]
  network_calls: int
  engine: SamplingEngine
  config: SamplingConfig
  inputs: GenerationInputs
  groups: Sequence[ConditionGroup]
  parameters: MergedParameters

  def batches(
    self,
    callback: Callback | None = None,
    *,
    preview: bool | PreviewDecoder = False,
    callback_steps: int = 1,
  ) -> Iterator[GenerationBatch]:
    """Yields images as they are finished.

    Args:
      callback: called after every `callback_steps` network calls; without it
        the host waits for finished batches alone.
      preview: pass a decoded x0 to the callback; compiles once more. A
        `PreviewDecoder` decodes it in place of the first stage.

    Raises:
      ConfigError: the preview's decoder does not fit the model.
    """
    if isinstance(preview, PreviewDecoder):
      preview.check(self.engine.model)
    if self.request.invert:
      yield self._batch(self._inverted(), 0)
      return
    progress, done = None, 0
    if callback is not None:

      def advance(calls: int, x0: jax.Array | None) -> None:
        nonlocal done
        done += calls
        image = None
        if isinstance(preview, PreviewDecoder):
          image = preview.images(processes.gather(x0))
        elif x0 is not None:
          image = self.engine.codec.decode(x0, self.config.tile)
        callback(done, self.network_calls, image)

      length = min(callback_steps, CHUNK_ROWS)
      progress = Progress(advance, length, preview is not False)
    first, waiting = 0, {}
    for places, arrays in self._finished(progress):
      waiting |= zip(places.tolist(), arrays, strict=True)
      ready = list(
        itertools.takewhile(waiting.__contains__, itertools.count(first))
      )
      if ready:
        yield self._batch(np.stack([waiting.pop(i) for i in ready]), first)
        first += len(ready)

  def _finished(
    self, progress: Progress | None
  ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches with the places of their images, the lowest first."""
    running = [
      _Running(
        group.places,
        self.engine.generate_group(self.config, group, self.inputs, progress),
      )
      for group in self.groups
    ]
    while running:
      group = min(running, key=lambda each: each.places[0])
      arrays = next(group.batches)
      places, group.places = np.split(group.places, [len(arrays)])
      if not len(group.places):
        running.remove(group)
      yield places, arrays

  def _inverted(self) -> np.ndarray:
    """The noise of the image, as latents."""
    images = self.inputs.image_inputs.images[:1]
    latents = self.engine.codec.encode(images, tile=self.config.tile)
    conditioning = self.groups[0].variants[0].positives[0].rows(np.arange(1))
    return np.asarray(self.engine.invert(self.config, latents, conditioning))

  def _batch(self, arrays: np.ndarray, first: int) -> GenerationBatch:
    check_finite(arrays)
    prompts = self.prompts[first : first + len(arrays)]
    places = range(first, first + len(arrays))
    return GenerationBatch(arrays, prompts, [self.metadata(i) for i in places])

  def metadata(self, place: int) -> dict[str, Any]:
    """The metadata of the image at `place`, from 0."""
    is_interpolation = self.request.interpolate is not None
    prompt = None
    if self.prompts and not is_interpolation:
      prompt = self.prompts[place]
    first = self.inputs.first
    if is_interpolation:
      first = self.request.index or 0
    replay = self.request.replay
    if replay is None:
      size = self.engine.batch_size(self.inputs)
      count = self.inputs.first + self.inputs.count
      replay = Replay(count, size, self.locate(place)[1] % size)
    return image_metadata(self.fields, prompt, first + place, replay)

  def locate(self, place: int) -> tuple[ConditionGroup, int]:
    """The group of the image at `place`, and the image's row there.

    Raises:
      IndexError: there is no such image.
    """
    for group in self.groups:
      at = np.searchsorted(group.places, place)
      if at < len(group.places) and group.places[at] == place:
        return group, int(at)
    raise IndexError(f"there is no image {place}")


@dataclasses.dataclass
class _Running:
  """A group that is being generated.

  Attributes:
    places: of the images to come.
    batches: of these images.
  """

  places: np.ndarray
  batches: Iterator[np.ndarray]


def prepare(
  request: GenerationRequest,
  images: RequestImages,
  loaded: LoadedModel,
  engine: SamplingEngine,
  model_metadata: Mapping[str, Any],
  parameters: MergedParameters = lambda loras: None,
) -> Generation:
  """Checks a request against its model and encodes its conditions.

  Raises:
    ValueError: the model cannot fulfil it.
    TooLarge: no device has the memory to decode a batch.
  """
  if "" in request.prompts:
    logger.warning("a prompt is empty, so guidance has no effect")
  if request.guidance == 0:
    logger.warning(
      "guidance 0 is the unconditional model; diffusers' guidance_scale=0, as "
      "for Turbo models, is guidance=1 (or compat='diffusers')"
    )
  request = with_class_number(request, loaded.classes)
  check_model(request, loaded)
  config = sampling_config(request, loaded, images)
  inputs = generation_inputs(request, config, loaded, images)
  engine.check_memory(config, inputs)
  conditions = condition_inputs(request, config, loaded, inputs.count)
  groups = condition_groups(request, config, loaded, conditions)
  for loras in dict.fromkeys(group.loras for group in groups):
    parameters(loras)  # a file that cannot be used is found here
  prompts, end = prompt_lists(request)
  if end is not None:
    rows = np.arange(inputs.count, 2 * inputs.count)
    positive = groups[0].variants[0].positives[0]
    inputs = dataclasses.replace(inputs, end=positive.rows(rows))
    groups = [groups[0]._replace(places=np.arange(inputs.count))]
  engine.check(config, inputs)
  resolved = with_model_defaults(request, config)
  size = engine.batch_size(inputs)
  batches = sum(-(-len(group.places) // size) for group in groups)
  return Generation(
    resolved,
    {**request_metadata(resolved), **model_metadata},
    prompts,
    batches * engine.network_calls(config),
    engine,
    config,
    inputs,
    groups,
    parameters,
  )


def check_finite(arrays: np.ndarray) -> None:
  """Raises NonFinite if latents hold NaN or infinity, as of images."""
  bad = sum(not np.isfinite(array).all() for array in arrays)
  if bad:
    raise NonFinite(
      f"{bad} of {len(arrays)} latents hold NaN or infinity; compute in "
      "float32, or check the weights"
    )
