"""Behind the report: measure both stages, and lay the pictures out."""

import argparse
import base64
import html
import io
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8
from PIL import Image
from tqdm import tqdm

from ldm_jax.commands.doors import usage
from ldm_jax.commands.models import open_denoising, open_run
from ldm_jax.data import pipeline
from ldm_jax.data.glyphs import Glyphs
from ldm_jax.evaluation.judge import judge, score
from ldm_jax.evaluation.psnr import psnr
from ldm_jax.latent_diffusion import to_float, to_uint8
from ldm_jax.loop import say
from ldm_jax.nodes import ConfigError
from ldm_jax.opened import Request, hear
from ldm_jax.run import Run
from ldm_jax.runtime import metrics, pictures
from ldm_jax.runtime.sharding import MeshShape
from ldm_jax.sampling import Order, Settings, Studio
from ldm_jax.tasks.denoising import Denoising, Frozen

BATCH = 64
SHOWN = 16
Images = UInt8[np.ndarray, "b h w 3"]


def report(flags: argparse.Namespace) -> int:
  """Measures, writes report.html and prints one line of JSON."""
  with usage():
    run = open_denoising(flags.model)
    data = run.experiment.data
    count = min(flags.num, len(data.validation))
    if count < 1:
      raise ConfigError(f"--num must be 1 or more, got {flags.num}")
    held_out = pipeline.first(
      data.validation, count, augment=data.centred, tokenizer=run.tokenizer
    )
    captions = [data.validation[i].get("caption", "") for i in range(count)]
  sharding = MeshShape().build()
  frozen = run.frozen(sharding)
  restored = reconstruct(run.experiment.task, frozen, held_out["image"])
  drawn = _draw(flags, run, held_out, captions)
  told = {"psnr": _psnr(held_out["image"], restored)}
  if isinstance(data.validation, Glyphs) and data.validation.level == 0:
    told |= score(judge(drawn), held_out["attributes"])
  stages = {"one": run.experiment.first_stage, "two": flags.model}
  logs = {name: metrics.read(folder) for name, folder in stages.items()}
  for name, log in logs.items():
    if log:
      told[f"seconds_stage_{name}"] = log[-1]["seconds"]
  told = {name: round(float(value), 4) for name, value in told.items()}
  pairs = np.concatenate([held_out["image"], restored], axis=2)
  os.makedirs(flags.out, exist_ok=True)
  path = os.path.join(flags.out, "report.html")
  page = _page(told, logs, pairs[:SHOWN], drawn[:SHOWN], captions[:SHOWN])
  with open(path + ".part", "w") as file:
    file.write(page)
  os.replace(path + ".part", path)
  print(path)
  print(json.dumps(told))
  return 0


def reconstruct(task: Denoising, frozen: Frozen, images: Images) -> Images:
  """Images through the frozen first stage and the mode of their posterior."""
  model = task.model

  @jax.jit
  def restore(frozen: Frozen, images: jax.Array) -> jax.Array:
    params = task.parameters({"conditioners": {}, "unet": None}, frozen)
    latents = model.encode(params, to_float(images)).mode()
    return model.decode(params, latents * params.latent_scale)

  parts = [images[i : i + BATCH] for i in range(0, len(images), BATCH)]
  return np.concatenate(
    [np.asarray(to_uint8(restore(frozen, part))) for part in parts]
  )


def _psnr(images: Images, restored: Images) -> float:
  each = psnr(
    *(np.asarray(to_float(jnp.asarray(x))) for x in (images, restored))
  )
  return float(np.mean(each))


def _draw(
  flags: argparse.Namespace,
  run: Run,
  held_out: Mapping[str, np.ndarray],
  captions: Sequence[str],
) -> Images:
  """One image per held-out caption or label."""
  count, height, width, _ = held_out["image"].shape
  settings = Settings(
    height=height,
    width=width,
    steps=flags.steps,
    guidance=flags.guidance,
    seed=flags.seed,
  )
  sharding = MeshShape().build()
  opened = open_run(run, sharding)
  words = captions if any(captions) else []
  request = Request(words, [None] * count, None, height, width)
  positive, negative = hear(opened, request, say)
  for name in positive.raw:
    positive.raw[name] = held_out[name]
    positive.is_null[name] = np.zeros(count, bool)
  studio = Studio(opened.model, opened.params, sharding)
  batches = -(-count // BATCH)
  with tqdm(total=batches * settings.steps, unit="step") as bar:
    drawn = studio.draw(
      settings, positive, negative, Order(count, BATCH), bar.update
    )
    return np.concatenate(list(drawn))


def _page(
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
    pairs=_picture(pictures.grid(pairs, columns=4)),
    drawn=_picture(pictures.grid(drawn, captions, columns=4)),
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
