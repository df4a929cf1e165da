"""Changing an image: noise is added to it, or an instruction edits it."""

import gradio as gr

from ldm_jax.serving.page.run_panel import PageContext, RunPanel
from ldm_jax.serving.page.settings_form import SettingsForm

TAB = "image"
STRENGTH = 0.6
IMAGE_GUIDANCE = 1.5  # of InstructPix2Pix


def build_tab(context: PageContext) -> SettingsForm:
  """Fills the tab that is open; returns its form."""
  form = SettingsForm(context, TAB, image="image")
  with gr.Row():
    with gr.Column(min_width=320):
      form.add_image("image", "Image")
      form.add_conditions()
      if context.inputs.source_image:
        form.add(
          "image_guidance_scale",
          gr.Slider,
          label="Guidance towards the image",
          **{"minimum": 1, "maximum": 5, "step": 0.1, "value": IMAGE_GUIDANCE},
        )
      else:
        form.add(
          "strength",
          gr.Slider,
          info="1 keeps nothing of the image",
          **{"minimum": 0.05, "maximum": 1, "step": 0.05, "value": STRENGTH},
        )
      form.add_sampler()
    with gr.Column(min_width=320):
      panel = RunPanel(context, TAB)
      results = panel.gallery()
  panel.connect(form.request, form.components, [results])
  return form
