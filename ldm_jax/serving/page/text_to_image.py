"""Images from what the model reads: text, a class, a map, a layout."""

import gradio as gr

from ldm_jax.serving.page.run_panel import PageContext, RunPanel
from ldm_jax.serving.page.settings_form import SettingsForm

TAB = "text"


def build_tab(context: PageContext) -> SettingsForm:
  """Fills the tab that is open; returns its form."""
  form = SettingsForm(context, TAB)
  with gr.Row():
    with gr.Column(min_width=320):
      form.add_conditions()
      form.add_sampler()
    with gr.Column(min_width=320):
      panel = RunPanel(context, TAB)
      results = panel.gallery()
  panel.connect(form.request, form.components, [results])
  return form
