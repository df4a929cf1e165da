"""Images that follow an image of edges, depth or poses, by a ControlNet."""

import gradio as gr

from ldm_jax.serving.page.run_panel import PageContext, RunPanel
from ldm_jax.serving.page.settings_form import SettingsForm

TAB = "controlnet"


def build_tab(context: PageContext) -> SettingsForm:
  """Fills the tab that is open; returns its form."""
  form = SettingsForm(context, TAB, image="control_image")
  names = list(context.controlnets)
  with gr.Row():
    with gr.Column(min_width=320):
      form.add(
        "controlnet",
        gr.Dropdown,
        label="ControlNet",
        choices=names,
        value=names[0][1],
      )
      form.add_image("control_image", "Conditioning image")
      bounds = {"minimum": 0, "maximum": 2, "step": 0.05}
      form.add("control_scale", gr.Slider, value=1.0, **bounds)
      form.add_conditions()
      form.add_sampler()
    with gr.Column(min_width=320):
      panel = RunPanel(context, TAB)
      results = panel.gallery()
  panel.connect(form.request, form.components, [results])
  return form
