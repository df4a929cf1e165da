"""Plots of runs' metrics over steps."""

from collections.abc import Sequence

import plotly.graph_objects as go

from ldm_jax.serving.watch.run_files import RunFiles, thinned

# Okabe and Ito's, which the colour-blind can distinguish.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_LOSS = "loss"


def loss_figure(runs: Sequence[RunFiles], is_log: bool = False) -> go.Figure:
  """Loss of training, solid, and of held-out examples, dashed."""
  figure = _figure("loss", is_log)
  for run, colour in zip(runs, _colours(runs), strict=True):
    _add(figure, run, _LOSS, f"{run.name}: train", colour)
    if run.validation_loss is not None:
      name = run.validation_loss.replace("validation_", "validation ")
      label = f"{run.name}: {name}"
      _add(figure, run, run.validation_loss, label, colour, dash="dash")
  return figure


def metric_figure(
  runs: Sequence[RunFiles], metric: str, is_log: bool = False
) -> go.Figure:
  """One metric of all runs."""
  figure = _figure(metric.replace("_", " "), is_log)
  for run, colour in zip(runs, _colours(runs), strict=True):
    _add(figure, run, metric, run.name, colour)
  return figure


def _colours(runs: Sequence[RunFiles]) -> list[str]:
  return [COLOURS[i % len(COLOURS)] for i in range(len(runs))]


def _add(
  figure: go.Figure,
  run: RunFiles,
  metric: str,
  label: str,
  colour: str,
  dash: str = "solid",
) -> None:
  """A line, if the run has the metric; points where there are few."""
  steps, values = thinned(*run.curve(metric))
  if not steps:
    return
  mode = "lines+markers" if len(steps) < 40 else "lines"
  figure.add_scatter(
    x=steps,
    y=values,
    name=label,
    mode=mode,
    line={"color": colour, "dash": dash, "width": 2},
    marker={"size": 5},
  )


def _figure(title: str, is_log: bool) -> go.Figure:
  """An empty plot whose colours fit a light and a dark page."""
  grey = "#808080"
  axis = {"gridcolor": "rgba(128,128,128,0.25)", "zeroline": False}
  return go.Figure(
    layout={
      "title": {"text": title, "font": {"size": 14}},
      "height": 320,
      "margin": {"l": 56, "r": 8, "t": 40, "b": 40},
      "paper_bgcolor": "rgba(0,0,0,0)",
      "plot_bgcolor": "rgba(0,0,0,0)",
      "font": {"color": grey, "family": "system-ui, sans-serif"},
      "legend": {"orientation": "h", "y": -0.2},
      "showlegend": True,
      "hovermode": "x unified",
      "xaxis": {"title": "step", **axis},
      "yaxis": {"type": "log" if is_log else "linear", **axis},
      "uirevision": title,
    }
  )
