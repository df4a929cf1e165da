"""The settings of an image, and sending it and them to a tab."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import gradio as gr

from ldm_jax.errors import ConfigError
from ldm_jax.serving.page.form_values import metadata_of
from ldm_jax.serving.page.run_panel import PageContext, one_line
from ldm_jax.serving.page.settings_form import SettingsForm

TAB = "info"
SESSION = "session"


class Target(NamedTuple):
  """A tab that images are sent to.

  Attributes:
    label: of the tab.
    tab: its id.
    form: that they fill.
  """

  label: str
  tab: str
  form: SettingsForm


def build_info_tab(
  context: PageContext, tabs: gr.Tabs, targets: list[Target]
) -> None:
  """Fills the tab that is open: an image is dropped, its settings appear."""
  with gr.Row():
    with gr.Column(min_width=320):
      image = gr.Image(
        label="Image",
        type="filepath",
        image_mode=None,
        format="png",
        sources=["upload", "clipboard"],
        elem_id="info-image",
        height=320,
      )
    with gr.Column(min_width=320):
      _add_senders("info", image, tabs, targets)
      settings = gr.JSON(label="Settings", elem_id="info-settings")
  _on(image.change, shown_settings, [image], settings)


def build_session_tab(
  context: PageContext, tab: gr.Tab, tabs: gr.Tabs, targets: list[Target]
) -> None:
  """Fills the tab that is open: all images of the session, and a zip."""
  chosen = gr.State(None)
  with gr.Row():
    with gr.Column(min_width=320):
      gallery = gr.Gallery(
        label="Images of this session",
        columns=4,
        object_fit="contain",
        height="auto",
        interactive=False,
        elem_id="session-images",
      )
      file = gr.DownloadButton("Download all (zip)", elem_id="session-zip")
    with gr.Column(min_width=320):
      _add_senders("session", chosen, tabs, targets)
      settings = gr.JSON(label="Settings", elem_id="session-settings")

  def images_and_zip(http: gr.Request) -> tuple[list[str], str]:
    session = context.sessions.get(http.session_hash)
    return list(session.images), session.write_zip()

  def choose(http: gr.Request, event: gr.SelectData) -> tuple[str, Any]:
    path = context.sessions.get(http.session_hash).images[event.index]
    return path, shown_settings(path)

  _on(tab.select, images_and_zip, [], [gallery, file])
  _on(gallery.select, choose, [], [chosen, settings])


def shown_settings(path: str | None) -> dict[str, Any] | None:
  """The metadata of an image without empty fields, or why it has none."""
  if path is None:
    return None
  try:
    found = metadata_of(path)
  except ConfigError as error:
    return {"settings": None, "reason": str(error)}
  return {name: value for name, value in found.items() if value is not None}


def _add_senders(
  name: str, source: Any, tabs: gr.Tabs, targets: list[Target]
) -> None:
  """A button for every target."""
  with gr.Row():
    for target in targets:
      button = gr.Button(
        f"Send to {target.label}",
        size="sm",
        elem_id=f"{name}-send-{target.tab}",
        min_width=180,
      )
      send = _sender(target)
      _on(button.click, send, [source], [tabs, *target.form.components])


def _sender(target: Target) -> Callable[[str | None], list[Any]]:
  """Opens the target's tab and fills its form."""

  def send(path: str | None) -> list[Any]:
    try:
      metadata: Mapping[str, Any] = metadata_of(path)
    except ConfigError as error:
      if path is None or target.form.image is None:
        raise one_line(error) from error
      metadata = {}  # any image can be changed
    updates = target.form.updates(metadata, path)
    return [gr.Tabs(selected=target.tab), *updates]

  return send


def _on(event: Callable, function: Callable, inputs: Any, outputs: Any) -> None:
  options = {"show_progress": "hidden", "api_visibility": "private"}
  event(function, inputs, outputs, **options)
