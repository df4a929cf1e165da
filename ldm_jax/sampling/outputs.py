"""What is to be drawn, and the files that it becomes."""

import argparse
import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

import ldm_jax
from ldm_jax.runtime import image_files
from ldm_jax.sampling import (
  Conditioning,
  GenerationInputs,
  SamplingConfig,
  SamplingEngine,
)
from ldm_jax.sampling.progress import Progress
from ldm_jax.weights.mmap_files import replace_file

A1111 = {  # its names where they are not ours in capitals
  "euler": "Euler",
  "euler_ancestral": "Euler a",
  "heun": "Heun",
  "dpm2": "DPM2",
  "dpm2_ancestral": "DPM2 a",
  "dpmpp_2m": "DPM++ 2M",
  "dpmpp_2m_sde": "DPM++ 2M SDE",
  "unipc": "UniPC",
}
SCHEDULES = {
  "karras": "Karras",
  "exponential": "Exponential",
  "sgm_uniform": "SGM Uniform",
  "simple": "Simple",
  "beta": "Beta",
  "kl_optimal": "KL Optimal",
}


@dataclasses.dataclass(frozen=True)
class GenerationJob:
  """A studio and what it is to draw."""

  studio: SamplingEngine
  settings: SamplingConfig
  order: GenerationInputs
  positive: Conditioning
  negative: Conditioning
  prompts: Sequence[str]
  toward: str | None = None

  def drawn(self) -> Iterator[np.ndarray]:
    """What the studio draws, with a bar of questions to the network."""
    draw, order = self.studio.generate, self.order
    batches = -(-order.count // self.studio.batch_size(order))
    total = batches * self.studio.network_calls(self.settings)
    with tqdm(total=total, unit="step") as bar:
      yield from draw(
        self.settings,
        self.positive,
        self.negative,
        order,
        Progress(lambda n, _: bar.update(n)),
      )

  def inverted(self) -> Iterator[np.ndarray]:
    """The noise that the pictures given come from."""
    images = self.order.image_inputs.images[:1]
    latents = self.studio.codec.encode(images, tile=self.settings.tile)
    said = self.positive.rows(np.arange(1))
    yield np.asarray(self.studio.invert(self.settings, latents, said))


def write_pictures(flags: argparse.Namespace, job: GenerationJob) -> None:
  """Numbered PNGs, each as soon as it is there, and a grid of them.

  Interrupted, what is finished stays, and the grid shows it.
  """
  first, images = _next_number(flags.out), []
  is_writer = jax.process_index() == 0
  try:
    for image in (image for batch in job.drawn() for image in batch):
      index = len(images)
      images.append(image)
      path = os.path.join(flags.out, f"{first + index:05d}.png")
      if is_writer:
        image_files.write_png(path, image, _told(flags, job, index))
        print(path, flush=True)
  finally:
    if images and is_writer:
      sheet = image_files.image_grid(
        np.stack(images), job.prompts[: len(images)]
      )
      name = f"grid_{first:05d}.png" if first else "grid.png"
      image_files.write_png(os.path.join(flags.out, name), sheet)
      print(os.path.join(flags.out, name))


def _next_number(folder: str) -> int:
  """One more than the largest number of a PNG in `folder`."""
  stems = (os.path.splitext(name)[0] for name in os.listdir(folder))
  return max((int(stem) for stem in stems if stem.isdigit()), default=-1) + 1


def _told(
  flags: argparse.Namespace, job: GenerationJob, index: int
) -> dict[str, str] | None:
  """What a PNG says of itself: all of it, and in words that others read."""
  if flags.no_metadata:
    return None
  told = {
    "prompt": job.prompts[index] if job.prompts else "",
    "negative_prompt": flags.negative_prompt,
    "class_label": flags.class_label,
    "index": index,
    "model": flags.model,
    "clip_skip": flags.clip_skip,
    "lora": flags.lora,
    "embedding": flags.embedding,
    "rng": flags.rng,
    "image": flags.image,
    "mask": flags.mask,
    "outpaint": flags.outpaint,
    "variation": flags.variation,
    "interpolate": flags.interpolate,
    "toward": job.toward,
    "emphasis": flags.emphasis,
    "controlnet": flags.controlnet,
    "control_image": flags.control_image,
    "segmap": flags.segmap,
    "depth": flags.depth,
    "layout": flags.layout,
    "neighbours": flags.neighbours,
    "classifier": flags.classifier,
    "classifier_scale": flags.classifier and flags.classifier_scale,
    "ldm_jax": ldm_jax.__version__,
  }
  settings = dataclasses.asdict(job.settings)
  told |= settings.pop("sampler_config") | {
    "guidance": job.settings.guidance.scale
  }
  told |= {k: v for k, v in settings.items() if k != "guidance"}
  told["guidance_rescale"] = job.settings.guidance.rescale
  told["guidance_interval"] = job.settings.guidance[2:]
  return {"parameters": _parameters(told), "ldm_jax": json.dumps(told)}


def _parameters(told: Mapping[str, Any]) -> str:
  """The text that A1111's web UI writes, and ComfyUI and Civitai read."""
  model = os.path.basename(os.path.normpath(told["model"]))
  pairs = {
    "Steps": told["steps"],
    "Sampler": A1111.get(told["sampler"], told["sampler"].upper()),
    "Schedule type": SCHEDULES.get(told["timestep_spacing"]),
    "CFG scale": f"{told['guidance']:g}",
    "Seed": told["seed"],
    "Size": f"{told['width']}x{told['height']}",
    "Model": json.dumps(model) if "," in model else model,
    "Clip skip": told["clip_skip"],
    "Denoising strength": told["strength"] if told["image"] else None,
    "Version": f"ldm_jax {told['ldm_jax']}",
  }
  lines = [told["prompt"]]
  if told["negative_prompt"]:
    lines.append(f"Negative prompt: {told['negative_prompt']}")
  said = (f"{k}: {v}" for k, v in pairs.items() if v is not None)
  return "\n".join([*lines, ", ".join(said)])


def write_latents(path: str, batches: Iterator[np.ndarray]) -> None:
  """All latents as one array; interrupted, those that are finished."""
  finished = []
  try:
    finished.extend(batches)
  finally:
    if finished and jax.process_index() == 0:
      with replace_file(path) as file:
        np.save(file, np.concatenate(finished))
      print(path)
