"""What the page keeps for a browser's session: its images and its tickets."""

import dataclasses
import json
import os
import shutil
import tempfile
import threading
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import UInt8

from ldm_jax.errors import ConfigError
from ldm_jax.runtime import image_files
from ldm_jax.sampling.metadata import png_text, read_metadata
from ldm_jax.serving.ticket import Ticket

KEPT = 500  # images of one session; the oldest are deleted


@dataclasses.dataclass
class Session:
  """One open page.

  Attributes:
    folder: of its images, deleted with it.
    images: paths of its PNGs, oldest first.
    tickets: that are under way, by the tab that asked.
    cancelled: tabs whose requests are cancelled, also those that have no
      ticket yet.
    count: images that were ever added.
  """

  folder: str
  images: list[str] = dataclasses.field(default_factory=list)
  tickets: dict[str, Ticket] = dataclasses.field(default_factory=dict)
  cancelled: set[str] = dataclasses.field(default_factory=set)
  count: int = 0

  def add(
    self,
    image: UInt8[np.ndarray, "h w 3"],
    metadata: Mapping[str, Any] | None,
  ) -> str:
    """Writes an image with its metadata; returns its path."""
    path = os.path.join(self.folder, f"{self.count:05d}.png")
    self.count += 1
    text = None if metadata is None else png_text(metadata)
    image_files.write_png(path, image, text)
    self.images.append(path)
    while len(self.images) > KEPT:
      os.remove(self.images.pop(0))
    return path

  def write_zip(self) -> str:
    """All images and a settings.jsonl as one file; returns its path."""
    path = os.path.join(self.folder, "images.zip")
    lines = []
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
      for image in self.images:
        name = os.path.basename(image)
        file.write(image, name)
        lines.append(json.dumps({"file": name} | settings_of(image)) + "\n")
      file.writestr("settings.jsonl", "".join(lines))
    return path

  def cancel(self, tab: str | None = None) -> None:
    """Cancels what a tab has asked for, or all."""
    tickets = dict(self.tickets)
    for name in tickets if tab is None else [tab]:
      self.cancelled.add(name)
      if name in tickets:
        tickets[name].cancel()


class Sessions:
  """The sessions of all browsers, by gradio's hash."""

  def __init__(self):
    self._found: dict[str, Session] = {}
    self._lock = threading.Lock()

  def get(self, key: str | None) -> Session:
    """The session of a hash; made when it is first asked for."""
    with self._lock:
      if key not in self._found:
        folder = tempfile.mkdtemp(prefix="ldm_jax_session_")
        self._found[key] = Session(folder)
      return self._found[key]

  def end(self, key: str | None) -> None:
    """Cancels a session's tickets and deletes its images."""
    with self._lock:
      session = self._found.pop(key, None)
    if session is not None:
      session.cancel()
      shutil.rmtree(session.folder, ignore_errors=True)


def settings_of(path: str) -> dict[str, Any]:
  """The metadata of an image of a session; {} of a contact sheet."""
  try:
    return read_metadata(path)
  except ConfigError:
    return {}
