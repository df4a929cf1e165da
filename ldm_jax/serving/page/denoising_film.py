"""x0 after every step of one image, with a slider."""

import os
from collections.abc import Sequence
from typing import Any

import gradio as gr

from ldm_jax.runtime import image_files
from ldm_jax.serving.page.run_panel import PageContext, RunPanel
from ldm_jax.serving.page.sessions import Session
from ldm_jax.serving.page.settings_form import SettingsForm
from ldm_jax.serving.ticket import Ticket

TAB = "film"


def build_tab(context: PageContext) -> None:
  """Fills the tab that is open; nothing is sent to it."""
  form = SettingsForm(context, TAB)
  frames = gr.State([])
  with gr.Row():
    with gr.Column(min_width=320):
      form.add_conditions()
      form.add_sampler(has_num=False)
    with gr.Column(min_width=320):
      panel = RunPanel(context, TAB)
      bounds = {"minimum": 0, "maximum": 1, "step": 1, "value": 0}
      slider = gr.Slider(label="Step", elem_id="film-step", **bounds)
      image = gr.Image(
        label="x0",
        format="png",
        interactive=False,
        height=420,
        elem_id="film-results",
      )

  def show(session: Session, tickets: Sequence[Ticket]) -> list[Any]:
    (ticket,) = tickets
    session.add(ticket.images[0], ticket.metadata[0])
    paths = write_frames(session, ticket)
    last = len(paths)
    bounds = {"minimum": 1, "maximum": last, "value": last}
    return [paths, gr.Slider(**bounds), paths[-1]]

  def choose(paths: list[str], step: float | int) -> str | None:
    return paths[min(len(paths), max(1, int(step))) - 1] if paths else None

  outputs = [frames, slider, image]
  panel.connect(form.request, form.components, outputs, show, has_film=True)
  slider.input(
    choose,
    [frames, slider],
    image,
    show_progress="hidden",
    trigger_mode="always_last",
    api_visibility="private",
  )


def write_frames(session: Session, ticket: Ticket) -> list[str]:
  """The x0 of a ticket's first image as PNGs; returns their paths."""
  folder = os.path.join(session.folder, "film", ticket.id)
  paths = []
  for step, frame in enumerate(ticket.film_images(0), 1):
    paths.append(os.path.join(folder, f"{step:04d}.png"))
    image_files.write_png(paths[-1], frame)
  return paths
