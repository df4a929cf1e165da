"""A model that generates images, request by request."""

import dataclasses
import logging
import os
from collections.abc import Collection, Mapping
from typing import Any

from ldm_jax.diffusion.samplers.sampler_names import parse_sampler_name
from ldm_jax.errors import ConfigError, config_errors
from ldm_jax.fields.arguments import checked_methods
from ldm_jax.loaded_model import LoadedModel
from ldm_jax.pretrained.lora.merge import split_scale
from ldm_jax.pretrained.open_model import LoadOptions, open_model
from ldm_jax.run import Run
from ldm_jax.runtime.devices.sharding import MeshShape, Sharding
from ldm_jax.sampling.adapters import AdaptedModel, Lora
from ldm_jax.sampling.generation import Callback, Generation, prepare
from ldm_jax.sampling.inputs.image_inputs import read_images
from ldm_jax.sampling.inputs.lora_folder import (
  find_loras,
  loras_metadata,
  warn_of_other_loras,
)
from ldm_jax.sampling.metadata import parse_metadata, read_metadata
from ldm_jax.sampling.outputs import GenerationResult, gather
from ldm_jax.sampling.preview_decoder import PreviewDecoder
from ldm_jax.sampling.request import GenerationRequest

logger = logging.getLogger(__name__)


@checked_methods
class Pipeline:
  """A model that fulfils `GenerationRequest`s.

    pipe = Pipeline.from_pretrained("stable-diffusion-v1-5")
    result = pipe(prompt="a red fox", num=4, steps=30, guidance=7.5, seed=0)
    result.images[0].save("fox.png")

  What is compiled is kept, and only a new size or batch compiles: steps,
  sampler, seed, guidance and the scales of LoRAs are data.

  Attributes:
    path: of the model, for metadata.
    lora_folder: of the LoRAs that prompts name, <lora:NAME:0.8>; or None.
  """

  def __init__(
    self,
    loaded: LoadedModel,
    *,
    path: str = "",
    dtype: str = "float32",
    sharding: Sharding | None = None,
    trust: Collection[str] = (),
  ):
    """Compiles nothing yet.

    Args:
      dtype: of the ControlNets that requests name.
      sharding: by default the batch is spread over all devices.
      trust: packages that may be imported for classes a classifier's run
        names.
    """
    sharding = sharding or MeshShape().build()
    self.path, self._sampler = path, None
    self.lora_folder: str | os.PathLike | None = None
    self._adapted = AdaptedModel(loaded, dtype, sharding, trust)

  @classmethod
  def open(cls, path: str, options: LoadOptions = LoadOptions()) -> "Pipeline":
    """The pipeline of a run, a diffusers folder, a single file, or owner/model.

    Raises:
      ConfigError: it is none of these, or the options do not fit it.
      WeightsError: its weights, or those of an adapter, cannot be used.
    """
    with config_errors():
      plain = dataclasses.replace(options, lora=(), embedding=())
      loaded = open_model(path, plain)
      pipe = cls(loaded, path=path, dtype=options.dtype, trust=options.trust)
      for file in options.embedding:
        pipe.load_textual_inversion(file)
      for lora in options.lora:
        file, scale = split_scale(lora) if isinstance(lora, str) else lora
        pipe.load_lora(file, scale)
      return pipe

  @classmethod
  def from_pretrained(cls, path: str, **options: Any) -> "Pipeline":
    """The pipeline of a diffusers folder, or owner/model of the hub.

    Args:
      options: fields of `LoadOptions`: dtype ("float32", "bfloat16"), variant
        (such as "fp16"), lora (FILE or FILE:SCALE), embedding.

    Raises:
      ConfigError, WeightsError: as `open`.
    """
    if os.path.isfile(path):
      raise ConfigError(f"{path!r} is a file; use Pipeline.from_single_file")
    return cls.open(path, LoadOptions(**options))

  @classmethod
  def from_single_file(
    cls, file: str | os.PathLike, **options: Any
  ) -> "Pipeline":
    """The pipeline of a .safetensors or .ckpt file of CompVis's names.

    Args:
      options: fields of `LoadOptions`: tokenizer (a folder; the file has none),
        dtype, prediction, weights, config, lora, embedding.

    Raises:
      ConfigError, WeightsError: as `open`.
    """
    if not os.path.isfile(file):
      raise ConfigError(f"there is no file {os.fspath(file)!r}")
    return cls.open(os.fspath(file), LoadOptions(**options))

  @classmethod
  def from_run(
    cls, folder: str | os.PathLike, *, trust: Collection[str] = ()
  ) -> "Pipeline":
    """The pipeline of a run of stage two, with its averaged parameters.

    Args:
      trust: packages that may be imported for classes the run names.

    Raises:
      ConfigError: there is no such run.
    """
    folder = os.fspath(folder)
    if not Run.exists(folder):
      raise ConfigError(f"{folder!r} is not a run: it has no config.json")
    return cls.open(folder, LoadOptions(trust=tuple(trust)))

  def __call__(
    self,
    request: GenerationRequest | str | None = None,
    *,
    callback: Callback | None = None,
    preview: bool | PreviewDecoder = False,
    callback_steps: int = 1,
    **fields: Any,
  ) -> GenerationResult:
    """Generates the images of a request, or of its fields as keywords.

    Args:
      request: a string is a prompt.
      callback: called with (network calls finished, of how many, a preview).
      preview: decode x0 for the callback, as uint8 [b h w 3]; by a
        `PreviewDecoder` if one is given.
      callback_steps: network calls between two calls of the callback.

    Raises:
      ConfigError: the request cannot be fulfilled, by this model or any.
      NonFinite: an image holds NaN or infinity.
    """
    made = self.prepare(request, **fields)
    options = {"preview": preview, "callback_steps": callback_steps}
    return gather(made.request, made.batches(callback, **options))

  def prepare(
    self, request: GenerationRequest | str | None = None, **fields: Any
  ) -> Generation:
    """Checks a request against the model and encodes its conditions.

    Every error of the request is raised here; `Generation.batches` then
    yields images as they are finished.

    Raises:
      ConfigError: the request cannot be fulfilled, by this model or any.
      TooLarge: no device has the memory to decode a batch.
    """
    with config_errors():
      request = _merged(request, fields).with_drawn_seed()
      if request.sampler is None:
        request = dataclasses.replace(request, sampler=self._sampler)
      images = read_images(request)  # before weights of a ControlNet
      loras = find_loras(self.lora_folder, request.prompts)
      loaded, engine = self._adapted.engine(request)
      own = self._own_metadata() | loras_metadata(loras)
      parameters = self._adapted.parameters_with(loaded, loras)
      return prepare(request, images, loaded, engine, own, parameters)

  def request_of(
    self, png: str | os.PathLike, **changes: Any
  ) -> GenerationRequest:
    """The request that is stored in an image.

    Fulfilled by the same model on the same devices, it repeats the image bit
    for bit, whatever its place in its batch was.

    Args:
      png: an image of ldm_jax, of this version or the one before.
      changes: fields in place of the image's own.

    Raises:
      ConfigError: it holds no request, or one of its files is missing or has
        changed.
    """
    metadata = read_metadata(png)
    own = self._own_metadata()
    for name in ("model", "lora", "embedding"):
      then, now = metadata.get(name) or [], own[name] or []
      if then != now:
        logger.warning(
          "%s was made with %s %s; this pipeline has %s", png, name, then, now
        )
    with config_errors():
      request = parse_metadata(metadata, changes)
      loras = find_loras(self.lora_folder, request.prompts)
      warn_of_other_loras(metadata, loras)
      return request

  @property
  def sampler(self) -> str | None:
    """The sampler of requests that name none; None is the model's own.

    Any spelling: "ddim", "DPM++ 2M Karras", "EulerDiscreteScheduler".
    """
    return self._sampler

  @sampler.setter
  def sampler(self, name: str | None) -> None:
    if name is not None:
      with config_errors():
        parse_sampler_name(name)
    self._sampler = name

  @property
  def loaded(self) -> LoadedModel:
    """The model, with what is merged into it."""
    return self._adapted.loaded

  @property
  def loras(self) -> Mapping[str, Lora]:
    """The LoRAs that are merged, by name, in order."""
    return dict(self._adapted.loras)

  def load_lora(
    self, file: str | os.PathLike, scale: float = 1.0, name: str | None = None
  ) -> str:
    """Merges a LoRA; returns its name, by default that of the file.

    Raises:
      ConfigError: there is one of that name.
      WeightsError: the file cannot be read, or is for another model.
    """
    return self._adapted.add_lora(file, scale, name)

  def unload_lora(self, name: str | None = None) -> None:
    """Removes a LoRA, or all of them; the weights are restored bit for bit.

    Raises:
      ConfigError: there is none of that name.
    """
    self._adapted.remove_lora(name)

  def set_lora_scale(self, scale: float, name: str | None = None) -> None:
    """Scales a LoRA, or all of them.

    Raises:
      ConfigError: there is none of that name.
    """
    self._adapted.scale_lora(scale, name)

  def load_textual_inversion(
    self, file: str | os.PathLike, token: str | None = None
  ) -> None:
    """Adds a token learned by textual inversion to the text encoders.

    Args:
      token: its text in prompts; by default the file's own, or its name.

    Raises:
      ConfigError: the model reads no prompts, or has the token already.
      WeightsError: the file cannot be read, or is for another model.
    """
    self._adapted.add_embedding(file, token)

  def _own_metadata(self) -> dict[str, Any]:
    """The entries of the model in images' metadata."""
    return {
      "model": self.path,
      "lora": [f"{each.file}:{each.scale:g}" for each in self.loras.values()],
      "embedding": list(self._adapted.embeddings),
    }


def _merged(
  request: GenerationRequest | str | None, fields: Mapping[str, Any]
) -> GenerationRequest:
  """A request with some fields replaced, or one of these fields."""
  if isinstance(request, GenerationRequest):
    return dataclasses.replace(request, **fields) if fields else request
  prompt = {} if request is None else {"prompt": request}
  return GenerationRequest(**prompt, **fields)
