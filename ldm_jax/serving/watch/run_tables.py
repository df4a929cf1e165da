"""Tables and previews of runs as HTML."""

import base64
import html
import time
from collections.abc import Iterable, Sequence
from typing import Any

from ldm_jax.serving.watch.run_files import RunFiles, config_differences

SKIPPED = 50  # of the last skipped steps


def overview_table(runs: Sequence[RunFiles]) -> str:
  """A row for every run: how far it is, and its last metrics."""
  heads = ("run", "step", "of", "left", "loss", "validation")
  heads += ("learning rate", "images/s", "skipped", "checkpoint")
  rows = []
  for run in runs:
    validation = run.validation_loss
    last = run.checkpoints[-1].step if run.checkpoints else None
    rows.append((
      run.name, run.step, run.steps, duration(run.seconds_left),
      run.latest("loss"), validation and run.latest(validation),
      run.latest("learning_rate"), run.latest("images_per_second"),
      len(run.skipped), last,
    ))  # fmt: skip
  return table(heads, rows)


def checkpoint_table(runs: Sequence[RunFiles]) -> str:
  """The checkpoints of all runs, newest first."""
  rows = [
    (
      run.name,
      each.step,
      time.strftime("%d %b %H:%M:%S", time.localtime(each.written)),
      f"{each.size / 2**20:.1f} MiB",
      each.digest or "being written",
    )
    for run in runs
    for each in reversed(run.checkpoints)
  ]
  heads = "run", "step", "written", "size", "digest (SHA-256)"
  return table(heads, rows, "No checkpoint yet.")


def skipped_table(runs: Sequence[RunFiles]) -> str:
  """The last skipped steps of all runs, newest first."""
  rows = [
    (run.name, line["step"], line.get("reason"), line.get("examples"))
    for run in runs
    for line in list(run.skipped)[: -SKIPPED - 1 : -1]
  ]
  heads = "run", "step", "reason", "examples"
  return table(heads, rows, "No step was skipped.")


def config_table(runs: Sequence[RunFiles]) -> str:
  """The config of one run, or where those of several differ."""
  heads = ["setting", *(run.name for run in runs)]
  if len(runs) == 1:
    rows = [(path, value) for path, value in runs[0].config.items()]
    return table(heads, rows)
  rows = [(path, *values) for path, values in config_differences(runs)]
  return table(heads, rows, "The configs do not differ.")


def preview_images(runs: Sequence[RunFiles], name: str, step: int) -> str:
  """The previews of a name at a step, or the last before it, of all runs."""
  figures = []
  for run in runs:
    steps = run.previews.get(name, {})
    known = [each for each in steps if each <= step]
    if not known:
      continue
    try:
      with open(steps[known[-1]], "rb") as file:
        data = base64.b64encode(file.read()).decode()
    except FileNotFoundError:
      continue
    text = html.escape(f"{run.name}, {name}, step {known[-1]}")
    figures.append(
      f'<figure><img alt="{text}" src="data:image/png;base64,{data}">'
      f"<figcaption>{text}</figcaption></figure>"
    )
  if not figures:
    return "<p>No preview yet.</p>"
  return f'<div class="previews">{"".join(figures)}</div>'


def table(
  heads: Iterable[Any], rows: Sequence[Iterable[Any]], empty: str = ""
) -> str:
  """An HTML table; a line of text in place of an empty one."""
  if not rows:
    return f"<p>{html.escape(empty)}</p>"
  cells = lambda tag, row: "".join(f"<{tag}>{shown(x)}</{tag}>" for x in row)
  body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
  head = f"<thead><tr>{cells('th', heads)}</tr></thead>"
  return (
    '<div class="table" tabindex="0" role="region">'
    f"<table>{head}<tbody>{body}</tbody></table></div>"
  )


def shown(value: Any) -> str:
  """A value as HTML."""
  if value is None:
    return "–"
  if isinstance(value, float):
    return f"{value:.4g}"
  if isinstance(value, list) and len(value) > 16:
    value = f"{str(value[:16])[:-1]}, ...]"
  return html.escape(str(value))


def duration(seconds: float | int | None) -> str | None:
  """Hours, minutes and seconds."""
  if seconds is None:
    return None
  minutes, rest = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f"{hours} h {minutes} min"
  return f"{minutes} min {rest} s" if minutes else f"{rest} s"
