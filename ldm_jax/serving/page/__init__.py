"""The web page of one model; every image goes through its `Worker`.

What a tab does, one call of Python does: `Worker.submit` with the request that
its form gives (`form_values.request_of_form`).
"""

import os
from collections.abc import Sequence

import gradio as gr

from ldm_jax.serving.appearance import new_blocks
from ldm_jax.serving.page import (
  comparison_grid,
  controlnet,
  denoising_film,
  first_stage,
  image_to_image,
  inpainting,
  png_info,
  text_to_image,
  upscale,
  variations,
)
from ldm_jax.serving.page.model_inputs import ModelInputs, model_inputs
from ldm_jax.serving.page.png_info import SESSION, Target
from ldm_jax.serving.page.run_panel import PageContext
from ldm_jax.serving.page.sessions import Sessions
from ldm_jax.serving.worker import Worker


def build_page(worker: Worker, controlnets: Sequence[str] = ()) -> gr.Blocks:
  """The page; mount it with `appearance.mount_page`.

  Args:
    worker: that fulfils requests; each browser tab is a client of it.
    controlnets: folders of ControlNets that the page offers.
  """
  inputs, sessions = model_inputs(worker.pipeline.loaded), Sessions()
  names = [(os.path.basename(os.path.normpath(p)), p) for p in controlnets]
  context = PageContext(worker, inputs, sessions, names)
  title = os.path.basename(os.path.normpath(worker.pipeline.path)) or "ldm_jax"
  with new_blocks(title) as blocks:
    gr.Markdown(f"# {title}")
    targets: list[Target] = []
    with gr.Tabs() as tabs:
      for label, module in _tabs(inputs, names):
        with gr.Tab(label, id=module.TAB):
          form = module.build_tab(context)
        if form is not None:
          targets.append(Target(label, module.TAB, form))
      with gr.Tab("PNG info", id=png_info.TAB):
        png_info.build_info_tab(context, tabs, targets)
      with gr.Tab("Session", id=SESSION) as tab:
        png_info.build_session_tab(context, tab, tabs, targets)

    def end(http: gr.Request) -> None:
      sessions.end(http.session_hash)

    blocks.unload(end)
  return blocks


def _tabs(inputs: ModelInputs, controlnets: Sequence) -> list[tuple]:
  """(label, module) of the tabs that the model can use."""
  is_upscaler, is_free = inputs.low_resolution, inputs.starts_from_noise
  rows = [
    (f"{inputs.subject} to image", text_to_image, is_free),
    ("Image to image", image_to_image, is_free or inputs.source_image),
    ("Inpaint", inpainting, is_free or inputs.masked_image),
    ("Upscale", upscale, is_upscaler),
    ("ControlNet", controlnet, is_free and controlnets),
    ("Variations", variations, is_free),
    ("Grid", comparison_grid, is_free),
    ("Film", denoising_film, is_free),
    ("First stage", first_stage, True),
  ]
  return [(label, module) for label, module, is_shown in rows if is_shown]
