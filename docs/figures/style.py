"""The look that all figures share, and where they are written."""

import pathlib
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = pathlib.Path(__file__).parent
INK, GREY = "#333333", "#999999"
COLOURS = ("#3f51b5", "#e07a1f", "#2a9d6f", "#c0392b", "#7d5ba6")

plt.rcParams.update(
  {
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.prop_cycle": plt.cycler(color=COLOURS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "figure.dpi": 110,
    "font.size": 9,
    "legend.frameon": False,
    "svg.hashsalt": "ldm_jax",
  }
)


def save(figure, name: str) -> pathlib.Path:
  """Writes NAME.png next to the code, or into the folder of the command."""
  folder = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
  path = folder / f"{name}.png"
  figure.savefig(path, bbox_inches="tight", metadata={"Software": None})
  plt.close(figure)
  return path
