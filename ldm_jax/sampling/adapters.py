"""A pipeline's model with LoRAs, textual inversions and ControlNets."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Collection, Mapping

from ldm_jax.errors import ConfigError, config_errors
from ldm_jax.latent_diffusion import Parameters
from ldm_jax.loaded_model import LoadedModel, skip_last_blocks
from ldm_jax.pretrained.controlnet import with_controlnet
from ldm_jax.pretrained.lora.merge import merge_lora
from ldm_jax.pretrained.textual_inversion import load_inversion
from ldm_jax.runtime.devices.replication import replicate
from ldm_jax.runtime.devices.sharding import Sharding
from ldm_jax.sampling.engine import SamplingEngine
from ldm_jax.sampling.inputs.condition_inputs import open_classifier
from ldm_jax.sampling.request import GenerationRequest


@dataclasses.dataclass(frozen=True)
class Lora:
  """A LoRA that is merged into a pipeline's model.

  Attributes:
    file: of the LoRA.
    scale: its change of the weights is multiplied by it.
  """

  file: str
  scale: float = 1.0


class AdaptedModel:
  """The model as it was read, the adapters merged into it, and its engines.

  Attributes:
    loaded: with what is merged into it.
    loras: that are merged, by name, in order.
    embeddings: files of textual inversion.
  """

  def __init__(
    self,
    loaded: LoadedModel,
    dtype: str,
    sharding: Sharding,
    trust: Collection[str] = (),
  ):
    """Compiles nothing yet.

    Args:
      dtype: of ControlNets.
      trust: of a classifier's run, see `Run.open`.
    """
    self._trust = trust
    self._dtype, self._sharding = dtype, sharding
    # Without and with LoRAs.
    self._base = self.loaded = self._placed(loaded)
    self.loras: dict[str, Lora] = {}
    self.embeddings: list[str] = []
    # Keyed by those fields of a request that change the model or its guidance.
    self._engines: dict[tuple, tuple[LoadedModel, SamplingEngine]] = {}

  def add_lora(
    self, file: str | os.PathLike, scale: float, name: str | None
  ) -> str:
    """Merges a LoRA; returns its name. See `Pipeline.load_lora`."""
    stem = pathlib.Path(file).stem
    free = (stem, *(f"{stem}_{i}" for i in range(1, len(self.loras) + 1)))
    if name is None:
      name = next(each for each in free if each not in self.loras)
    if name in self.loras:
      raise ConfigError(f"a LoRA {name!r} is loaded; give another name")
    self._merge(self.loras | {name: Lora(os.fspath(file), scale)})
    return name

  def remove_lora(self, name: str | None) -> None:
    """See `Pipeline.unload_lora`."""
    removed = self._names(name)
    self._merge({k: v for k, v in self.loras.items() if k not in removed})

  def scale_lora(self, scale: float, name: str | None) -> None:
    """See `Pipeline.set_lora_scale`."""
    scaled = {
      each: dataclasses.replace(self.loras[each], scale=scale)
      for each in self._names(name)
    }
    self._merge(self.loras | scaled)

  def add_embedding(self, file: str | os.PathLike, token: str | None) -> None:
    """See `Pipeline.load_textual_inversion`."""
    with config_errors():
      self._base = self._placed(load_inversion(self._base, file, token))
    self.embeddings.append(os.fspath(file))
    self._engines.clear()  # the tables of tokens have grown
    self._merge(self.loras)

  def engine(
    self, request: GenerationRequest
  ) -> tuple[LoadedModel, SamplingEngine]:
    """The model and the engine for a request; made once.

    Raises:
      ValueError: the model has no such variant.
    """
    network, classifier = (
      None if path is None else os.fspath(path)
      for path in (request.controlnet, request.classifier)
    )
    key = request.clip_skip, network, classifier
    if key not in self._engines:
      loaded, guide = self.loaded, None
      if request.clip_skip is not None:
        loaded = skip_last_blocks(loaded, request.clip_skip - 1)
      if network is not None:
        loaded = with_controlnet(loaded, network, self._dtype)
        loaded = self._placed(loaded)
      if classifier is not None:
        scale = float(loaded.params.latent_scale)
        guide = open_classifier(classifier, scale, self._sharding, self._trust)
      engine = SamplingEngine(
        loaded.model, loaded.params, self._sharding, guide
      )
      self._engines[key] = loaded, engine
    return self._engines[key]

  def parameters_with(
    self, loaded: LoadedModel, files: Mapping[str, str]
  ) -> Callable[[tuple[tuple[str, float], ...]], Parameters | None]:
    """(name, scale) of LoRAs -> the model's parameters with them merged.

    The last ones are kept. Without LoRAs None.

    Args:
      files: of LoRAs, by name.
    """

    @functools.lru_cache(1)
    def merged(loras: tuple[tuple[str, float], ...]) -> Parameters | None:
      found = loaded
      with config_errors():
        for name, scale in loras:
          found = merge_lora(found, files[name], scale=scale)
      found = self._placed(found)
      if found.model is not loaded.model:
        raise ConfigError(
          f"a LoRA of {', '.join(name for name, _ in loras)} holds embeddings, "
          "which a prompt cannot load; load it with the model (--lora)"
        )
      return found.params if loras else None

    return merged

  def _placed(self, loaded: LoadedModel) -> LoadedModel:
    """The model with its parameters on all devices."""
    params = replicate(loaded.params, self._sharding)
    if params is loaded.params:
      return loaded
    return dataclasses.replace(loaded, params=params)

  def _names(self, name: str | None) -> list[str]:
    if name is None:
      return list(self.loras)
    if name not in self.loras:
      known = ", ".join(self.loras) or "none"
      raise ConfigError(f"no LoRA is called {name!r}; there are {known}")
    return [name]

  def _merge(self, loras: Mapping[str, Lora]) -> None:
    """Merges these LoRAs, and no others, into the model as it was read.

    Engines keep what they have compiled where only parameters change; with
    embeddings that are bundled with LoRAs the text encoders change too.
    """
    loaded = self._base
    with config_errors():
      for lora in loras.values():
        loaded = merge_lora(loaded, lora.file, scale=lora.scale)
    loaded = self._placed(loaded)
    if loaded.model != self.loaded.model:
      self._engines.clear()  # the tables of tokens have another length
    self.loras, self.loaded = dict(loras), loaded
    for key, (variant, engine) in self._engines.items():
      params = variant.params.replace(
        unet=loaded.params.unet, conditioners=loaded.params.conditioners
      )
      engine.set_parameters(params)
      self._engines[key] = dataclasses.replace(variant, params=params), engine
