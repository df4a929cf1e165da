"""What the first stage keeps of an image."""

import asyncio
from typing import Any

import gradio as gr
from PIL import Image

from ldm_jax.errors import LdmJaxError
from ldm_jax.sampling.views.first_stage import FirstStageView, view_first_stage
from ldm_jax.serving.page.run_panel import PageContext, one_line

TAB = "first_stage"
_SIDE = 256  # to which small images are enlarged


def build_tab(context: PageContext) -> None:
  """Fills the tab that is open; nothing is sent to it."""
  with gr.Row():
    with gr.Column(min_width=320):
      image = gr.Image(
        label="Image",
        type="pil",
        image_mode="RGB",
        sources=["upload", "clipboard"],
        height=320,
        elem_id=f"{TAB}-image",
      )
      text = gr.Markdown(elem_id=f"{TAB}-text")
    with gr.Column(min_width=320):
      results = gr.Gallery(
        label="Image, reconstruction, difference (4 times), latents",
        columns=3,
        object_fit="contain",
        height="auto",
        format="png",
        interactive=False,
        elem_id=f"{TAB}-results",
      )

  async def show(given: Image.Image | None) -> tuple[str, list[Any]]:
    if given is None:
      return "", []
    try:
      loaded = context.worker.pipeline.loaded
      view = await asyncio.to_thread(view_first_stage, loaded, given)
    except LdmJaxError as error:
      raise one_line(error) from error
    return summary(view), captioned(view)

  image.change(
    show, image, [text, results], api_visibility="private", concurrency_limit=1
  )


def summary(view: FirstStageView) -> str:
  """The numbers of a view as a line of Markdown."""
  height, width = view.image.shape[:2]
  channels, rows, columns = view.latents.shape[:3]
  factor = view.image.size / (channels * rows * columns)
  low, high = view.spread
  return (
    f"**PSNR {view.psnr:.2f} dB**: {height} x {width} pixels as {rows} x "
    f"{columns} latents of {channels} channels ({factor:.3g} times fewer "
    f"numbers), from {low:.2f} to {high:.2f}"
  )


def captioned(view: FirstStageView) -> list[tuple[Image.Image, str]]:
  """The images of a view with captions; small ones are enlarged."""
  channels = [(x, f"channel {i}") for i, x in enumerate(view.latents)]
  images = [
    (view.image, "image"),
    (view.reconstruction, f"reconstruction, {view.psnr:.2f} dB"),
    (view.difference, "difference, 4 times"),
    *channels,
  ]
  return [(_enlarged(pixels), caption) for pixels, caption in images]


def _enlarged(pixels: Any) -> Image.Image:
  """By a whole factor."""
  image = Image.fromarray(pixels)
  factor = max(1, _SIDE // max(image.size))
  size = image.width * factor, image.height * factor
  return image.resize(size, Image.Resampling.NEAREST)
