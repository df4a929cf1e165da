"""A report as one HTML file, pictures inside."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ldm_jax.runtime import image_files

Images = UInt8[np.ndarray, "b h w 3"]


def write_page(
  told: Mapping[str, float],
  logs: Mapping[str, list[dict[str, Any]]],
  pairs: UInt8[np.ndarray, "b h w2 3"],
  drawn: Images,
  captions: Sequence[str],
) -> str:
  """The whole report as HTML, pictures inside."""
  rows = "".join(
    f"<tr><td>{html.escape(name.replace('_', ' '))}</td><td>{value:g}</td></tr>"
    for name, value in told.items()
  )
  curves = "".join(
    f"<figure>{_curve(log)}<figcaption>Stage {name}: loss over steps"
    "</figcaption></figure>"
    for name, log in logs.items()
    if len(log) > 1
  )
  return _TEMPLATE.format(
    rows=rows,
    curves=curves,
    pairs=_picture(image_files.image_grid(pairs, columns=4)),
    drawn=_picture(image_files.image_grid(drawn, captions, columns=4)),
  )


def _picture(image: UInt8[np.ndarray, "h w 3"]) -> str:
  file = io.BytesIO()
  Image.fromarray(image).save(file, "PNG")
  text = base64.b64encode(file.getvalue()).decode()
  return f'<img src="data:image/png;base64,{text}">'


def _curve(log: Sequence[Mapping[str, Any]]) -> str:
  """A line over a logarithmic axis, as SVG."""
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
<title>Latent diffusion: a report</title>
<style>
  body {{ font: 15px/1.5 sans-serif; max-width: 62em; margin: 2em auto;
    padding: 0 1em; color: #222 }}
  td {{ padding: 0 1.5em 0 0; border-bottom: 1px solid #ddd }}
  td + td {{ text-align: right; font-variant-numeric: tabular-nums }}
  figure {{ margin: 1em 0 }} img {{ max-width: 100% }} svg text {{
    font-size: 12px; fill: #555 }}
</style>
<h1>Latent diffusion: a report</h1>
<h2>Measured</h2>
<p>Fidelity of the first stage on held-out images (PSNR, dB), the share of
samples in which each attribute of the caption is found, and the seconds each
stage took.</p>
<table>{rows}</table>
<h2>Learning</h2>
{curves}
<h2>Samples, and what was asked for</h2>
{drawn}
<h2>Held-out images and their reconstructions</h2>
{pairs}
"""
