"""Prompts, samplers, steps and guidance in all combinations, on one sheet."""

from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from ldm_jax.diffusion.samplers.registry import SAMPLERS
from ldm_jax.errors import ConfigError
from ldm_jax.sampling.request import GenerationRequest
from ldm_jax.sampling.views.request_grid import (
  labelled_sheet,
  prompt_matrix,
  request_grid,
)
from ldm_jax.serving.page.form_values import request_of_form
from ldm_jax.serving.page.run_panel import PageContext, RunPanel, save_images
from ldm_jax.serving.page.sessions import Session
from ldm_jax.serving.page.settings_form import SettingsForm
from ldm_jax.serving.ticket import Ticket

TAB = "grid"
AXES = ("samplers", "steps_axis", "guidance_axis")
MOST = 100  # images of a sheet


def build_tab(context: PageContext) -> None:
  """Fills the tab that is open; nothing is sent to it."""
  form = SettingsForm(context, TAB)
  with gr.Row():
    with gr.Column(min_width=320):
      form.add_conditions()
      if context.inputs.prompt:
        form.parts["prompt"].label = "Prompts, one a line"
        form.parts[
          "prompt"
        ].info = "a | b | c is the matrix a; a, b; a, c; a, b, c"
      form.add(
        AXES[0],
        gr.Dropdown,
        choices=list(SAMPLERS),
        value=["ddim", "dpmpp_2m"],
        multiselect=True,
        allow_custom_value=True,
      )
      form.add(AXES[1], gr.Textbox, label="Steps", value="5, 10, 20")
      if context.inputs.has_guidance:
        form.add(AXES[2], gr.Textbox, label="Guidance", value="1, 3, 6")
      form.add_sampler(has_num=False, has_axes=False)
    with gr.Column(min_width=320):
      panel = RunPanel(context, TAB)
      options = {"format": "png", "interactive": False, "height": "auto"}
      sheet = gr.Image(label="Sheet", elem_id="grid-results", **options)

  build = lambda *values: grid_of_form(form.values(values))

  def show(session: Session, tickets: Sequence[Ticket]) -> list[Any]:
    images = [image for ticket in tickets for image in ticket.images]
    requests = [g.request for ticket in tickets for g, _ in ticket.sources]
    save_images(session, tickets)
    return [session.add(labelled_sheet(requests, images), None)]

  panel.connect(build, form.components, [sheet], show)


def grid_of_form(values: Mapping[str, Any]) -> list[GenerationRequest]:
  """The requests of the form's values.

  Raises:
    ConfigError: a value cannot be used, or there are too many images.
  """
  fields = dict(values)
  samplers, steps, guidance = (fields.pop(name, "") for name in AXES)
  lines = (fields.pop("prompt", None) or "").splitlines()
  prompts = [p for line in lines if line.strip() for p in prompt_matrix(line)]
  found = request_grid(
    request_of_form(fields),
    prompts=prompts,
    samplers=samplers or (),
    steps=_numbers(steps, "steps", int),
    guidance=_numbers(guidance, "guidance", float),
  )
  if len(found) > MOST:
    raise ConfigError(
      f"the grid has {len(found)} images, and {MOST} are the most; "
      "leave some values out"
    )
  return found


def _numbers(text: str, name: str, kind: type) -> list[Any]:
  parts = [part.strip() for part in text.split(",") if part.strip()]
  try:
    return [kind(part) for part in parts]
  except ValueError:
    raise ConfigError(
      f"{name} takes numbers that are separated by commas, got {text!r}"
    ) from None
