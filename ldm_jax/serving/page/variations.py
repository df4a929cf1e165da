"""Variations of one image, and interpolations between two."""

from collections.abc import Mapping
from typing import Any

import gradio as gr

from ldm_jax.errors import ConfigError
from ldm_jax.sampling.request import GenerationRequest
from ldm_jax.serving.page.form_values import request_of_form
from ldm_jax.serving.page.run_panel import PageContext, RunPanel
from ldm_jax.serving.page.settings_form import SettingsForm

TAB = "variations"
KIND, END = "kind", "end"
KINDS = ("Variations", "Interpolation")


def build_tab(context: PageContext) -> SettingsForm:
  """Fills the tab that is open; returns its form."""
  form = SettingsForm(context, TAB)
  most = min(16, context.worker.limits.images)
  with gr.Row():
    with gr.Column(min_width=320):
      form.add(KIND, gr.Radio, choices=list(KINDS), value=KINDS[0])
      form.add_conditions()
      if context.inputs.prompt:
        form.add(
          END,
          gr.Textbox,
          label="Last prompt of the interpolation",
          info="empty interpolates between the noises of images 0 and 1",
        )
      form.add(
        "variation",
        gr.Slider,
        label="Distance of variations",
        info="0 is the image of the seed itself, 1 is unrelated to it",
        **{"minimum": 0, "maximum": 1, "step": 0.05, "value": 0.2},
      )
      bounds = {"minimum": 2, "maximum": most, "step": 1}
      form.add("num", gr.Slider, label="Images", value=min(4, most), **bounds)
      form.add_sampler(has_num=False)
    with gr.Column(min_width=320):
      panel = RunPanel(context, TAB)
      results = panel.gallery()
  build = lambda *values: variation_request(form.values(values))
  panel.connect(build, form.components, [results])
  return form


def variation_request(values: Mapping[str, Any]) -> GenerationRequest:
  """The request of the form's values.

  Raises:
    ConfigError: a value cannot be used.
  """
  fields = dict(values)
  kind, end = fields.pop(KIND), fields.pop(END, "")
  if kind == KINDS[0]:
    if end:
      raise ConfigError("variations have one prompt; leave the last one empty")
    return request_of_form(fields)
  fields.pop("variation")
  fields["interpolate"] = fields.pop("num")
  if end:
    fields["prompt"] = (fields.get("prompt") or "", end)
  return request_of_form(fields)
