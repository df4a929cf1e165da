"""A part of an image made anew, or the image extended at its sides."""

from collections.abc import Mapping
from typing import Any

import gradio as gr
import numpy as np
from jaxtyping import Bool, UInt8

from ldm_jax.errors import ConfigError
from ldm_jax.sampling.request import GenerationRequest
from ldm_jax.serving.page.form_values import request_of_form, whole_numbers
from ldm_jax.serving.page.run_panel import PageContext, RunPanel
from ldm_jax.serving.page.settings_form import SettingsForm

TAB = "inpaint"
EDITOR, RECTANGLE = "editor", "rectangle"


def build_tab(context: PageContext) -> SettingsForm:
  """Fills the tab that is open; returns its form."""
  form = SettingsForm(context, TAB, image=EDITOR)
  radius = max(1, context.worker.pipeline.loaded.height // 24)
  with gr.Row():
    with gr.Column(min_width=320):
      form.add(
        EDITOR,
        gr.ImageEditor,
        label="Image; paint over what is to be generated",
        image_mode="RGBA",
        type="numpy",
        sources=["upload", "clipboard"],
        transforms=[],
        layers=False,
        brush=gr.Brush(radius, colors=["#ff3030"], color_mode="fixed"),
        height=420,
      )
      form.add(
        RECTANGLE,
        gr.Textbox,
        label="And this rectangle",
        info="left, top, right, bottom in pixels",
        placeholder="16, 16, 48, 48",
        max_lines=1,
      )
      form.add(
        "outpaint",
        gr.Textbox,
        label="Or extend it",
        info="pixels at the left, top, right and bottom",
        placeholder="0, 0, 64, 0",
        max_lines=1,
      )
      form.add_conditions()
      form.add_sampler()
    with gr.Column(min_width=320):
      panel = RunPanel(context, TAB)
      results = panel.gallery()
  build = lambda *values: inpainting_request(form.values(values))
  panel.connect(build, form.components, [results])
  return form


def inpainting_request(values: Mapping[str, Any]) -> GenerationRequest:
  """The request of the form's values.

  Raises:
    ConfigError: there is no image, or nothing is to be generated.
  """
  fields = dict(values)
  edited, rectangle = fields.pop(EDITOR), fields.pop(RECTANGLE)
  if edited is None or edited["background"] is None:
    raise ConfigError("give an image, then paint over a part of it")
  fields["image"] = edited["background"][..., :3]
  if fields["outpaint"]:
    if rectangle:
      raise ConfigError("extend the image or paint over it, not both at once")
    fields["outpaint"] = whole_numbers(fields["outpaint"], "extension", 4)
    return request_of_form(fields)
  mask = painted(edited)
  if rectangle:
    left, top, right, bottom = whole_numbers(rectangle, "rectangle", 4)
    mask[max(0, top) : max(0, bottom), max(0, left) : max(0, right)] = True
  if not mask.any():
    raise ConfigError(
      "nothing is to be generated; paint over a part of the image, or give a "
      "rectangle"
    )
  fields["mask"] = np.where(mask, np.uint8(255), np.uint8(0))
  return request_of_form(fields)


def painted(edited: Mapping[str, Any]) -> Bool[np.ndarray, "h w"]:
  """Where a layer of an editor's value is more than half opaque."""
  background: UInt8[np.ndarray, "h w 4"] = edited["background"]
  mask = np.zeros(background.shape[:2], bool)
  for layer in edited["layers"]:
    mask |= layer[..., 3] >= 128
  return mask
