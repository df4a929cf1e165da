"""The form of a request's fields: what the model reads, and the sampler's."""

from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from ldm_jax.diffusion.samplers.registry import SAMPLERS
from ldm_jax.diffusion.samplers.timesteps import SPACINGS
from ldm_jax.sampling.request import GenerationRequest
from ldm_jax.serving.page.form_values import (
  OTHER,
  SEED,
  form_for_image,
  form_of_metadata,
  request_of_form,
)
from ldm_jax.serving.page.run_panel import PageContext

STEPS = 25


class SettingsForm:
  """Components by the request's field that they give.

  Attributes:
    parts: the components, in order; a tab adds its own with `add`.
    image: the field that takes an image which is sent to the tab, or None.
  """

  def __init__(self, context: PageContext, tab: str, image: str | None = None):
    """Adds nothing yet.

    Args:
      tab: begins the ids of elements, "TAB-FIELD".
      image: the field that takes an image which is sent to the tab, if any.
    """
    self.parts: dict[str, gr.components.Component] = {}
    self.image = image
    self._context, self._tab = context, tab

  @property
  def components(self) -> list[gr.components.Component]:
    """In the order of the values that `request` takes."""
    return list(self.parts.values())

  def add(
    self, field: str, kind: type[gr.components.Component], **options: Any
  ) -> gr.components.Component:
    """A component for a field."""
    options.setdefault("label", field.replace("_", " ").capitalize())
    part = kind(elem_id=f"{self._tab}-{field}", **options)
    self.parts[field] = part
    return part

  def values(self, values: Sequence[Any]) -> dict[str, Any]:
    """The components' values by field."""
    return dict(zip(self.parts, values, strict=True))

  def request(self, *values: Any) -> GenerationRequest:
    """Raises ConfigError if the values are no request."""
    return request_of_form(self.values(values))

  def updates(self, metadata: Mapping[str, Any], path: str) -> list[Any]:
    """What the components become when an image is sent to the tab.

    A tab that takes an image gets this one, with its settings; any other gets
    the settings that make the image again.

    Args:
      metadata: of the image; {} if it has none.
      path: of the image.
    """
    if self.image is None:
      found = form_of_metadata(metadata, self.parts)
    else:
      found = form_for_image(metadata, self.parts) | {self.image: path}
    return [found.get(name, gr.skip()) for name in self.parts]

  def add_conditions(self) -> None:
    """What the model reads."""
    inputs = self._context.inputs
    if inputs.prompt:
      self.add("prompt", gr.Textbox, lines=2, autofocus=False)
      if inputs.has_guidance:
        self.add("negative_prompt", gr.Textbox, lines=1)
    if inputs.classes:
      choices = [("no class", None), *inputs.classes]
      value = inputs.classes[0][1]
      self.add(
        "class_label", gr.Dropdown, label="Class", choices=choices, value=value
      )
    if inputs.segmap:
      label = "Segmentation map (grey values or palette indices)"
      self._add_map("segmap", label)
    if inputs.depth:
      self._add_map("depth", "Depth map (lighter is nearer)")
    if inputs.layout:
      self.add(
        "layout",
        gr.Textbox,
        label="Layout (JSON)",
        lines=3,
        placeholder='[{"class": 3, "box": [0.1, 0.2, 0.5, 0.9]}]',
        info="class and box, [left, top, right, bottom] in 0 to 1",
      )
    if inputs.neighbours:
      label = "Embeddings of neighbours (.npy)"
      self.add("neighbours", gr.File, label=label, file_types=[".npy"])
    for key in inputs.arrays:
      label = f"{key} (.npy)"
      name = f"conditions.{key}"
      self.add(name, gr.File, label=label, file_types=[".npy"])

  def add_image(self, field: str, label: str) -> None:
    """A colour image that is dropped, pasted or chosen."""
    options = {"type": "pil", "image_mode": "RGB", "height": 320}
    sources = ["upload", "clipboard"]
    self.add(field, gr.Image, label=label, sources=sources, **options)

  def add_sampler(self, *, has_num: bool = True, has_axes: bool = True) -> None:
    """Steps, sampler, guidance, seed, and the fields that are rarely set.

    Args:
      has_num: the number of images.
      has_axes: steps, guidance and sampler, which a grid has several of.
    """
    if has_axes:
      self._add_steps()
    with gr.Row():
      if has_num:
        most = min(16, self._context.worker.limits.images)
        bounds = {"minimum": 1, "maximum": most, "step": 1}
        self.add("num", gr.Slider, label="Images", value=1, **bounds)
      info = "-1 draws one"
      self.add(SEED, gr.Textbox, value="-1", info=info, max_lines=1)
    self._add_rare(has_axes)

  def _add_steps(self) -> None:
    limits, loaded = self._context.worker.limits, self._loaded
    with gr.Row():
      steps = min(STEPS, limits.steps)
      bounds = {"minimum": 1, "maximum": limits.steps, "step": 1}
      self.add("steps", gr.Slider, value=steps, **bounds)
      if self._context.inputs.has_guidance:
        bounds = {"minimum": 0, "maximum": 20, "step": 0.1}
        self.add("guidance", gr.Slider, value=loaded.guidance, **bounds)

  @property
  def _loaded(self) -> Any:
    return self._context.worker.pipeline.loaded

  def _add_map(self, field: str, label: str) -> None:
    sources = ["upload", "clipboard"]
    options = {"type": "pil", "image_mode": None, "sources": sources}
    self.add(field, gr.Image, label=label, height=240, **options)

  def _add_rare(self, has_sampler: bool) -> None:
    own = self._loaded.sampler_config.sampler
    own = own if isinstance(own, str) else own.__name__
    with gr.Accordion("More settings", open=False):
      with gr.Row():
        options = {"allow_custom_value": True, "value": ""}
        if has_sampler:
          choices = [(f"the model's ({own})", ""), *SAMPLERS]
          self.add("sampler", gr.Dropdown, choices=choices, **options)
        choices = [("the sampler's", ""), *SPACINGS]
        self.add("timestep_spacing", gr.Dropdown, choices=choices, **options)
      with gr.Row():
        for field in ("width", "height"):
          size = getattr(self._loaded, field)
          info = f"pixels; empty is {size}, or an image's own"
          self.add(field, gr.Number, value=None, precision=0, info=info)
      if self._context.inputs.prompt:
        label = "A1111's prompt syntax: (word:1.3), [a:b:0.5], BREAK, AND"
        self.add("emphasis", gr.Checkbox, label=label, value=False)
      self.add(
        OTHER,
        gr.Textbox,
        label="Other settings (JSON)",
        info="further fields of GenerationRequest",
        placeholder='{"eta": 1.0, "clip_skip": 2, "window": 256}',
        max_lines=4,
      )
