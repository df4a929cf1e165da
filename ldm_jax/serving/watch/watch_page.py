"""The page that follows runs."""

import itertools
from collections.abc import Sequence
from typing import Any

import gradio as gr

from ldm_jax.serving.appearance import new_blocks
from ldm_jax.serving.watch import curves, run_tables
from ldm_jax.serving.watch.run_files import RunFiles, read_run, state_of_files

_SHOWN = ("loss", "learning_rate", "images_per_second")  # have their own plots


def build_watch_page(runs: Sequence[str], every: float | int = 5) -> gr.Blocks:
  """The page; mount it with `appearance.mount_page`.

  Args:
    runs: folders, which are read only.
    every: seconds between two looks at the files.

  Raises:
    ConfigError: a folder holds no run.
  """
  found = list(map(read_run, runs))
  title = ", ".join(run.name for run in found)
  with new_blocks(f"ldm-jax watch {title}") as blocks:
    gr.Markdown(f"# {title}")
    view = _View(found)
    state = gr.State(None)
    view.connect(list(runs), state, every, blocks)
  return blocks


class _View:
  """The page's components, and what they show of some runs."""

  def __init__(self, runs: Sequence[RunFiles]):
    """Adds the components.

    Args:
      runs: as they are at first.
    """
    self.overview = gr.HTML(elem_id="overview")
    self.is_log = gr.Checkbox(
      label="Logarithmic", value=False, elem_id="log", min_width=120
    )
    self.loss = gr.Plot(show_label=False, elem_id="loss")
    with gr.Row():
      with gr.Column(min_width=320):
        self.rate = gr.Plot(show_label=False, elem_id="rate")
      with gr.Column(min_width=320):
        self.speed = gr.Plot(show_label=False, elem_id="speed")
    names = metric_names(runs)
    self.metric = gr.Dropdown(
      names, value=next(iter(names), None), label="Metric", elem_id="metric"
    )
    self.other = gr.Plot(show_label=False, elem_id="other")
    self._add_previews(runs)
    with gr.Tab("Checkpoints"):
      self.checkpoints = gr.HTML(elem_id="checkpoints")
    with gr.Tab("Skipped steps"):
      self.skipped = gr.HTML(elem_id="skipped")
    with gr.Tab("Config" if len(runs) == 1 else "Differences of configs"):
      self.config = gr.HTML(elem_id="config")

  def _add_previews(self, runs: Sequence[RunFiles]) -> None:
    with gr.Row():
      names = preview_names(runs)
      self.preview = gr.Dropdown(
        names,
        value=next(iter(names), None),
        label="Preview",
        elem_id="preview",
      )
      self.step = gr.Slider(
        0, 1, 0, step=1, label="Step of the preview", elem_id="step"
      )
      self.follows = gr.Checkbox(
        label="The newest", value=True, elem_id="follow", min_width=120
      )
    self.images = gr.HTML(elem_id="previews")

  def connect(
    self,
    folders: list[str],
    state: gr.State,
    every: float | int,
    blocks: gr.Blocks,
  ) -> None:
    """Refreshes the components when the files or the choices change."""

    def refresh(before: Any, *choices: Any) -> list[Any]:
      now = state_of_files(folders)
      if now == before:
        return [gr.skip()] * (1 + len(outputs))
      runs = list(map(read_run, folders))
      return [now, *self.shown(runs, *choices)]

    def plots(*choices: Any) -> list[Any]:
      return self.shown_plots(list(map(read_run, folders)), *choices)

    def images(name: str, step: float | int, follows: bool) -> list[Any]:
      runs = list(map(read_run, folders))
      return self.shown_previews(runs, name, step, follows)

    def choose(name: str, step: float | int) -> tuple[bool, str]:
      runs = list(map(read_run, folders))
      return False, run_tables.preview_images(runs, name, int(step))

    figures = [self.loss, self.rate, self.speed, self.other]
    tables = [self.overview, self.checkpoints, self.skipped, self.config]
    previews = [self.step, self.images]
    outputs = [*tables, self.metric, self.preview, *figures, *previews]
    inputs = [self.is_log, self.metric, self.preview, self.step, self.follows]
    quiet = {"show_progress": "hidden", "api_visibility": "private"}
    everything = [state, *outputs]
    timer = gr.Timer(every)
    blocks.load(refresh, [state, *inputs], everything, **quiet)
    timer.tick(refresh, [state, *inputs], everything, **quiet)
    for part in (self.is_log, self.metric):
      part.input(plots, [self.is_log, self.metric], figures, **quiet)
    for part in (self.preview, self.follows):
      choices = [self.preview, self.step, self.follows]
      part.input(images, choices, previews, **quiet)
    chosen = [self.follows, self.images]
    self.step.input(choose, [self.preview, self.step], chosen, **quiet)

  def shown(
    self,
    runs: Sequence[RunFiles],
    is_log: bool,
    metric: str | None,
    preview: str | None,
    step: float | int,
    follows: bool,
  ) -> list[Any]:
    """What all components show."""
    metrics, previews = metric_names(runs), preview_names(runs)
    metric = metric or next(iter(metrics), None)
    preview = preview or next(iter(previews), None)
    return [
      run_tables.overview_table(runs),
      run_tables.checkpoint_table(runs),
      run_tables.skipped_table(runs),
      run_tables.config_table(runs),
      gr.Dropdown(metrics, value=metric),
      gr.Dropdown(previews, value=preview),
      *self.shown_plots(runs, is_log, metric),
      *self.shown_previews(runs, preview, step, follows),
    ]

  def shown_plots(
    self, runs: Sequence[RunFiles], is_log: bool, metric: str | None
  ) -> list[Any]:
    """The four plots."""
    names = "learning_rate", "images_per_second", metric or "loss"
    rate, speed, other = (
      curves.metric_figure(runs, name, is_log and name == metric)
      for name in names
    )
    return [curves.loss_figure(runs, is_log), rate, speed, other]

  def shown_previews(
    self,
    runs: Sequence[RunFiles],
    name: str | None,
    step: float | int,
    follows: bool,
  ) -> list[Any]:
    """The slider over steps, and the previews at one."""
    steps = sorted({s for run in runs for s in run.previews.get(name, ())})
    if not steps:
      return [gr.skip(), run_tables.preview_images(runs, name or "", 0)]
    value = steps[-1] if follows else min(int(step), steps[-1])
    gaps = [b - a for a, b in itertools.pairwise(steps)]
    slider = gr.Slider(
      minimum=min(steps[0], steps[-1] - 1),
      maximum=steps[-1],
      step=min(gaps, default=1),
      value=value,
    )
    return [slider, run_tables.preview_images(runs, name, value)]


def metric_names(runs: Sequence[RunFiles]) -> list[str]:
  """Metrics that have no plot of their own."""
  names = dict.fromkeys(name for run in runs for name in run.names)
  return [name for name in names if name not in _SHOWN]


def preview_names(runs: Sequence[RunFiles]) -> list[str]:
  """The names of previews."""
  return list(dict.fromkeys(name for run in runs for name in run.previews))
