"""Upscaling an image, by a model that reads a low-resolution one."""

import gradio as gr

from ldm_jax.serving.page.run_panel import PageContext, RunPanel
from ldm_jax.serving.page.settings_form import SettingsForm

TAB = "upscale"
NOISE_LEVEL = 20  # as in diffusers


def build_tab(context: PageContext) -> SettingsForm:
  """Fills the tab that is open; returns its form."""
  form = SettingsForm(context, TAB, image="image")
  with gr.Row():
    with gr.Column(min_width=320):
      form.add_image("image", "Low-resolution image")
      form.add_conditions()
      if context.inputs.has_noise_levels:
        bounds = {"minimum": 0, "maximum": 350, "step": 1}
        form.add("noise_level", gr.Slider, value=NOISE_LEVEL, **bounds)
      form.add_sampler()
    with gr.Column(min_width=320):
      panel = RunPanel(context, TAB, "Upscale")
      results = panel.gallery()
  panel.connect(form.request, form.components, [results])
  return form
