"""A report as one HTML file with embedded images."""

import base64
import dataclasses
import html
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ldm_jax.runtime import image_files

Images = UInt8[np.ndarray, "b h w 3"]


@dataclasses.dataclass(frozen=True)
class Page:
  """The contents of a report.

  Attributes:
    metrics: numbers by name.
    logs: lines of metrics.jsonl, by the name of the stage.
    pairs: held-out images, each with its reconstruction on the right.
    samples: generated images.
    captions: of the samples.
  """

  metrics: Mapping[str, float]
  logs: Mapping[str, list[dict[str, Any]]]
  pairs: UInt8[np.ndarray, "b h w2 3"]
  samples: Images
  captions: Sequence[str]


def html_page(page: Page) -> str:
  """The report as HTML."""
  rows = "".join(
    f"<tr><td>{html.escape(name.replace('_', ' '))}</td><td>{value:g}</td></tr>"
    for name, value in page.metrics.items()
  )
  curves = "".join(
    f"<figure>{_loss_curve(log)}<figcaption>Stage {name}: loss over steps"
    "</figcaption></figure>"
    for name, log in page.logs.items()
    if len(log) > 1
  )
  return _TEMPLATE.format(
    rows=rows,
    curves=curves,
    pairs=_image(image_files.image_grid(page.pairs, columns=4)),
    samples=_image(
      image_files.image_grid(page.samples, page.captions, columns=4)
    ),
  )


def _image(image: UInt8[np.ndarray, "h w 3"]) -> str:
  """An image as an element with a data URL."""
  file = io.BytesIO()
  Image.fromarray(image).save(file, "PNG")
  text = base64.b64encode(file.getvalue()).decode()
  return f'<img src="data:image/png;base64,{text}">'


def _loss_curve(log: Sequence[Mapping[str, Any]]) -> str:
  """The loss over steps on a logarithmic axis, as SVG."""
  points = [
    (line["step"], np.log10(line["loss"]))
    for line in log
    if (line.get("loss") or 0) > 0
  ]
  steps, values = np.asarray(points).T
  low, high = values.min(), max(values.max(), values.min() + 1e-3)
  x = 60 + 520 * steps / steps.max()
  y = 190 - 170 * (values - low) / (high - low)
  line = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
  label = lambda a, b, text: f'<text x="{a}" y="{b}">{text}</text>'
  return (
    '<svg viewBox="0 0 600 220" width="600">'
    f'<polyline points="{line}" fill="none" stroke="#36c" stroke-width="2"/>'
    '<path d="M60 20V190H580" fill="none" stroke="#888"/>'
    + label(2, 25, f"{10**high:.3g}")
    + label(2, 192, f"{10**low:.3g}")
    + label(60, 212, "0")
    + label(540, 212, f"{int(steps.max())}")
    + "</svg>"
  )


_TEMPLATE = """<!doctype html>
<meta charset="utf-8">
<title>Latent diffusion report</title>
<style>
  body {{ font: 15px/1.5 sans-serif; max-width: 62em; margin: 2em auto;
    padding: 0 1em; color: #222 }}
  td {{ padding: 0 1.5em 0 0; border-bottom: 1px solid #ddd }}
  td + td {{ text-align: right; font-variant-numeric: tabular-nums }}
  figure {{ margin: 1em 0 }} img {{ max-width: 100% }} svg text {{
    font-size: 12px; fill: #555 }}
</style>
<h1>Latent diffusion report</h1>
<h2>Metrics</h2>
<p>PSNR of the first stage's reconstructions of held-out images in dB, how well
samples match their conditions (accuracies and other fractions, from 0 to 1),
and the training time of each stage in seconds.</p>
<table>{rows}</table>
<h2>Training loss</h2>
{curves}
<h2>Samples and their captions</h2>
{samples}
<h2>Held-out images and their reconstructions</h2>
{pairs}
"""
