"""An image's own metadata gives its numbers again, for every task."""

import json

import jax
import numpy as np
import pytest
from PIL import Image
from test_meshes import ENCODER, STACK

from ldm_jax.data.text.clip_prompts import ClipPrompts, PromptSyntax
from ldm_jax.data.text.tokenizers import TokenizerConfig
from ldm_jax.data.transforms.layout_tokens import LayoutTokens
from ldm_jax.latent_diffusion import LatentDiffusion, Parameters
from ldm_jax.loaded_model import LoadedModel
from ldm_jax.nn.autoencoder import Autoencoder
from ldm_jax.nn.conditioners.clip_embedder import ClipEmbedder
from ldm_jax.nn.conditioners.embedders import (
  ClassEmbedder,
  LayoutEmbedder,
  SizeEmbedder,
)
from ldm_jax.nn.conditioners.source_image import SourceImage
from ldm_jax.nn.conditioners.spatial import (
  DepthMap,
  LowResolution,
  MaskedImage,
  NeighbourEmbeddings,
  SegmentationEmbedder,
)
from ldm_jax.nn.encoders.clip_text import ClipText
from ldm_jax.nn.unet import AttentionPlan, UNet
from ldm_jax.sampling.metadata import parse_metadata
from ldm_jax.sampling.pipeline import Pipeline

RNG = np.random.default_rng(0)
LONG = "a b " * 8
BOXES = [{"class": 3, "box": [0.1, 0.2, 0.5, 0.9]}]
TEXT = {"prompt": "a b", "negative_prompt": "b"}
TASKS = {
  "several prompts": ("text", {"prompt": ["a", LONG, "b"], "num": 2}, 3),
  "long negative": ("text", {"prompt": "a", "negative_prompt": LONG}, 0),
  "syntax": (
    "text",
    {"prompt": ["a", "a AND b :2", "[a:b:0.5] BREAK b"], "emphasis": True},
    2,
  ),
  "seed": ("text", TEXT | {"seed": 2**50, "num": 3}, 2),
  "drawn seed": ("text", TEXT | {"seed": -1}, 0),
  "torch": ("text", TEXT | {"rng": "torch", "num": 3}, 1),
  "variation": ("text", TEXT | {"variation": 0.3, "num": 3}, 2),
  "interpolation": ("text", {"prompt": ["a", LONG], "interpolate": 4}, 2),
  "between noises": ("text", TEXT | {"interpolate": 4}, 3),
  "later index": ("text", TEXT | {"index": 5, "num": 3}, 1),
  "latents": ("text", TEXT | {"initial_latents": "latents.npy", "num": 4}, 2),
  "sigmas": ("text", TEXT | {"sigmas": (9.0, 3.0, 0.0)}, 0),
  "times": ("text", TEXT | {"times": (900.0, 3.5)}, 0),
  "compat": ("text", TEXT | {"compat": "diffusers", "sampler": "euler"}, 0),
  "order": ("text", TEXT | {"sampler": "unipc", "order": 3}, 0),
  "karras": ("text", TEXT | {"sampler": "DPM++ 2M SDE Karras", "eta": 0.5}, 0),
  "guidance": (
    "text",
    TEXT
    | {"guidance": 2.5, "guidance_rescale": 0.3}
    | {"guidance_interval": (0.2, 0.8), "threshold": (0.99, 1.5)},
    0,
  ),
  "no guidance": ("text", TEXT | {"guidance": 1.0}, 0),
  "large": ("text", TEXT | {"height": 32, "window": 16, "tile": 16}, 0),
  "image": ("text", TEXT | {"image": "image", "strength": 0.4}, 0),
  "inpainting": ("text", TEXT | {"image": "image", "mask": "mask"}, 0),
  "outpainting": (
    "text",
    TEXT | {"image": "image", "outpaint": (4, 0, 0, 2)},
    0,
  ),
  "masked image": ("mask", {"image": "image", "mask": "mask", "num": 2}, 1),
  "editing": (
    "edit",
    TEXT | {"image": "image", "image_guidance_scale": 1.8},
    0,
  ),
  "editing, defaults": ("edit", TEXT | {"image": "image"}, 0),
  "upscaling": ("low", {"image": "image", "noise_level": None}, 0),
  "class": ("class", {"class_label": 2, "num": 2}, 1),
  "segmap": ("map", {"segmap": "map"}, 0),
  "depth": ("depth", {"depth": "map", "num": 2}, 1),
  "layout": ("layout", {"layout": "boxes"}, 0),
  "layout in memory": ("layout", {"layout": BOXES}, 0),
  "neighbours": ("neighbours", {"neighbours": "rows.npy"}, 0),
}  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  """A file for each field that takes one."""
  place = tmp_path_factory.mktemp("inputs")
  rgb = RNG.integers(0, 256, (16, 16, 3)).astype(np.uint8)
  Image.fromarray(rgb).save(place / "image", "PNG")
  Image.fromarray(rgb[..., 0] // 52).save(place / "map", "PNG")
  white = np.zeros((16, 16), np.uint8)
  white[4:12, 4:12] = 255
  Image.fromarray(white).save(place / "mask", "PNG")
  (place / "boxes").write_text(json.dumps(BOXES), encoding="utf-8")
  np.save(place / "latents.npy", RNG.normal(size=(4, 8, 8, 3)))
  np.save(place / "rows.npy", RNG.normal(size=(2, 16)))
  return {path.name: str(path) for path in place.iterdir()}


def pipeline(kind):
  """A pipeline whose networks have no parameters, to prepare requests."""
  syntax = PromptSyntax(TokenizerConfig(length=9).build(["a b"]), 0)
  text = ClipEmbedder((ClipText(40, 16, 1, 1, 9),), paddings=(0,))
  parts = {
    "text": (text, SizeEmbedder(width=4)),
    "class": (ClassEmbedder(5, 16),),
    "map": (SegmentationEmbedder(5, 3, 1),),
    "depth": (DepthMap(2),),
    "layout": (LayoutEmbedder(ENCODER),),
    "neighbours": (NeighbourEmbeddings(16),),
    "mask": (MaskedImage(),),
    "low": (LowResolution(),),
    "edit": (text, SourceImage()),
  }[kind]
  model = LatentDiffusion(
    Autoencoder(STACK, 3),
    UNet(3, 16, (1, 2), 1, AttentionPlan((0, 1), heads=2), groups=4),
    parts,
  )
  params = Parameters({}, 1.0, {part.input_key: {} for part in parts}, {})
  tokenizer = ClipPrompts((syntax,)) if kind in ("text", "edit") else None
  layout = LayoutTokens(24, 1, has_crop=False) if kind == "layout" else None
  return Pipeline(LoadedModel(model, params, tokenizer, 16, 16, layout=layout))


def numbers(generation, place):
  """All arrays and settings of one image of a generation."""
  inputs = generation.inputs
  (group,) = (g for g in generation.groups if place in g.places)
  rows = np.flatnonzero(group.places == place)
  fraction = None if inputs.fractions is None else inputs.fractions[[place]]
  noise = inputs.initial_noise
  if noise is not None and inputs.fractions is None:
    noise = noise[[inputs.first + place]]
  end = None if inputs.end is None else inputs.end.rows(np.array([place]))
  return (
    generation.config,
    group.schedule,
    [each.rows(rows) for each in group.variants],
    jax.tree.leaves(inputs.image_inputs.rows(np.array([place])).__dict__),
    (inputs.variation, fraction, noise, end),
    None if inputs.fractions is not None else inputs.first + place,
  )


@pytest.mark.parametrize("task", TASKS)
def test_metadata_gives_an_images_numbers_again(files, task):
  kind, fields, place = TASKS[task]
  pipe = pipeline(kind)
  fields = {
    name: files.get(value, value) if isinstance(value, str) else value
    for name, value in fields.items()
  }
  common = {"steps": 4, "output": "latents"}
  generation = pipe.prepare(**(common | fields))
  metadata = json.loads(json.dumps(generation.metadata(place)))
  request = parse_metadata(metadata, {"output": "latents"})
  again = pipe.prepare(request)
  assert again.inputs.count == 1
  assert json.loads(json.dumps(again.metadata(0))) == metadata
  first, second = numbers(generation, place), numbers(again, 0)
  assert first[0] == second[0]
  jax.tree.map(np.testing.assert_array_equal, first[1:], second[1:])
