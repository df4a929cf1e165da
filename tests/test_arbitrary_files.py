"""Any JSON value at any place of a file, and any bytes in any container.

What is read is read or refused with an exception of this package of one line.
A few examples run by default; `HYPOTHESIS_EXAMPLES=20000 pytest -m slow` runs
as many as it says.
"""

import copy
import dataclasses
import io
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from ldm_jax.data.annotations import read_boxes, read_map
from ldm_jax.data.images import decode_image, image_size
from ldm_jax.data.sources.cached_latents import CachedLatents, read_manifest
from ldm_jax.data.sources.folder_captions import read_captions
from ldm_jax.data.sources.packed_examples import example
from ldm_jax.data.text import tokenizers
from ldm_jax.errors import ConfigError, DamagedFile, DataError, LdmJaxError
from ldm_jax.evaluation.metrics.statistics import read_statistics
from ldm_jax.files.numpy_files import read_npy, read_npz
from ldm_jax.pretrained.components import (
  Components,
  ForeignNetwork,
  open_folder,
  read_json,
)
from ldm_jax.pretrained.configs.concat_inputs import concat_conditioners
from ldm_jax.pretrained.configs.encoder_keys import unread_encoder_keys
from ldm_jax.pretrained.configs.scheduler_config import (
  sampler_config,
  schedule,
  unsupported_options,
)
from ldm_jax.pretrained.configs.unet_reader import Inputs
from ldm_jax.pretrained.lora.adapter_config import read_configs
from ldm_jax.pretrained.networks import build, kind_of, latent_scale
from ldm_jax.pretrained.single_file.stored_configs import read_stored
from ldm_jax.pretrained.text.conditioners import unet_inputs
from ldm_jax.run import Run
from ldm_jax.runtime.monitoring.metric_writer import read_metrics
from ldm_jax.sampling.metadata import parse_metadata, read_metadata
from ldm_jax.sampling.request import GenerationRequest
from ldm_jax.weights.files import read_tensors

MANY = int(os.environ.get("HYPOTHESIS_EXAMPLES", "20000"))
FEW = settings(
  max_examples=25,
  deadline=None,
  database=None,
  derandomize=True,
  suppress_health_check=list(HealthCheck),
)
NUMBERS = st.integers() | st.floats() | st.just(10**400)
PLAIN = st.none() | st.booleans() | NUMBERS | st.text(max_size=6)
VALUES = st.recursive(
  PLAIN,
  lambda inner: (
    st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=4), inner, max_size=3)
  ),
  max_leaves=6,
)


def png(**text):
  from PIL.PngImagePlugin import PngInfo

  info = PngInfo()
  for name, value in text.items():
    info.add_itxt(name, value)
  file = io.BytesIO()
  Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4)).save(
    file, "PNG", pnginfo=info
  )
  return file.getvalue()


PNG = png()
REQUEST = {
  field.name: field.default for field in dataclasses.fields(GenerationRequest)
} | {"replay": {"count": 1, "batch": 1, "row": 0}, "input_hashes": {}}
REQUEST |= {"prompt": "cat", "num": 1}


def in_folder(name, read):
  """A reader of a file of this name in a folder of its own."""

  def reader(content):
    with tempfile.TemporaryDirectory() as folder:
      path = os.path.join(folder, name)
      with open(path, "wb") as file:
        file.write(content)
      return read(folder, path)

  return reader


def captions(folder, path):
  import pathlib

  with open(os.path.join(folder, "a.png"), "wb") as file:
    file.write(PNG)
  names = [os.path.basename(path), "a.png"]
  return read_captions(pathlib.Path(folder), names, ["a.png"])["a.png"]


def settings_of(content):
  return in_folder(
    "a.png", lambda f, path: parse_metadata(read_metadata(path), {})
  )(png(ldm_jax=content.decode()))


def config(read):
  """A reader of the configs of pretrained networks and schedulers."""
  return in_folder("config.json", lambda f, p: read(read_json(Path(p))))


def of_scheduler(values):
  return schedule(values), sampler_config(values), unsupported_options(values)


def of_network(values):
  kind = kind_of(values)
  found = [build(values), unread_encoder_keys("x", kind, values)]
  if kind == "unet":
    networks = {"unet": ForeignNetwork(values, {}, "unet", "diffusers")}
    found.append(unet_inputs(Components(networks)))
  return found + ([latent_scale(values)] if kind == "autoencoder" else [])


def stored_networks(configs):
  found = [build(each.config) for each in configs.networks]
  return found, configs.scheduler and of_scheduler(configs.scheduler)


TOKENS = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2}


def of_tokenizer(folder, path):
  files = {"vocab.json": json.dumps(TOKENS), "merges.txt": "#version: 0.2\n"}
  for name, text in files.items():
    if not os.path.exists(os.path.join(folder, name)):
      Path(folder, name).write_text(text, encoding="utf-8")
  return tokenizers.load(folder, 9)


def of_adapter(folder, path):
  Path(folder, "adapter_model.safetensors").write_bytes(safetensors())
  configs = read_configs(os.path.join(folder, "adapter_model.safetensors"))
  return [
    (each.rank_of("a.b"), each.alpha_of("a.b"), each.is_whole("a.b"))
    for each in configs.values()
  ]


def safetensors():
  header = b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}'
  return len(header).to_bytes(8, "little") + header + b"ab"


DDIM = {
  "_class_name": "DDIMScheduler",
  "beta_start": 0.00085,
  "beta_schedule": "scaled_linear",
  "clip_sample": False,
  "num_train_timesteps": 10,
  "timestep_spacing": "leading",
  "steps_offset": 1,
}
DPM = {
  "_class_name": "DPMSolverMultistepScheduler",
  "algorithm_type": "dpmsolver++",
  "final_sigmas_type": "zero",
  "lambda_min_clipped": -5.0,
  "solver_order": 2,
  "trained_betas": None,
}
UNIPC = {"_class_name": "UniPCMultistepScheduler", "disable_corrector": [0]}
UNET = {
  "_class_name": "UNet2DConditionModel",
  "attention_head_dim": [2, 4],
  "block_out_channels": [32, 64],
  "cross_attention_dim": 16,
  "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
  "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
  "layers_per_block": 1,
  "sample_size": 8,
  "transformer_layers_per_block": [1, [1]],
}
VAE = {
  "_class_name": "AutoencoderKL",
  "block_out_channels": [32],
  "down_block_types": ["DownEncoderBlock2D"],
  "up_block_types": ["UpDecoderBlock2D"],
  "norm_num_groups": 8,
  "scaling_factor": 0.18215,
}
CLIP = {
  "architectures": ["CLIPTextModel"],
  "eos_token_id": 2,
  "hidden_act": "gelu",
  "hidden_size": 64,
  "num_hidden_layers": 1,
}
VISION = {
  "architectures": ["CLIPModel"],
  "projection_dim": 8,
  "vision_config": {"hidden_size": 64, "num_attention_heads": 2},
}
BOXES = [{"class": 3, "box": [0.1, 0.2, 0.5, 0.9]}]
JSON_FILES = {
  "boxes": (BOXES, in_folder("a.json", lambda f, p: read_boxes(p))),
  "metadata.jsonl": (
    {"file_name": "a.png", "text": "x", "score": 1},
    in_folder("metadata.jsonl", captions),
  ),
  "json of a shard": (
    {"caption": "x", "text": "y", "label": 1, "score": 2.5},
    lambda content: example({"png": PNG, "json": content}, "x"),
  ),
  "manifest": (
    {
      "count": 0,
      "is_complete": True,
      "has_captions": False,
      "arrays": {"moments": ["float16", [2]]},
    },
    in_folder(
      "manifest.json", lambda f, p: (read_manifest(f), len(CachedLatents(f)))
    ),
  ),
  "metrics": (
    {"step": 1, "seconds": 2.0, "loss": 3.0},
    in_folder("metrics.jsonl", lambda f, p: read_metrics(f)),
  ),
  "run": (
    {"format": 2, "experiment": {"class": "Glyphs", "level": 0}, "batch": {}},
    in_folder("config.json", lambda f, p: (Run.exists(f), Run.open(f))),
  ),
  "settings of a PNG": (REQUEST, settings_of),
  "ddim": (DDIM, config(of_scheduler)),
  "dpm": (DPM, config(of_scheduler)),
  "unipc": (UNIPC, config(of_scheduler)),
  "unet": (UNET, config(of_network)),
  "vae": (VAE, config(of_network)),
  "clip": (CLIP, config(of_network)),
  "clip vision": (VISION, config(of_network)),
  "model_index": (
    {
      "_class_name": "StableDiffusionInstructPix2PixPipeline",
      "unet": ["diffusers", "UNet2DConditionModel"],
      "safety_checker": [None, None],
      "requires_safety_checker": False,
    },
    in_folder(
      "model_index.json",
      lambda f, p: (
        concat_conditioners(
          read_json(Path(p)), Inputs(channels=8, context=768), 4, 8
        ),
        open_folder(f),
      ),
    ),
  ),
  "tokenizer_config": (
    {
      "tokenizer_class": "CLIPTokenizer",
      "bos_token": {"__type": "AddedToken", "content": "<|startoftext|>"},
      "pad_token": "<|endoftext|>",
      "do_lower_case": True,
      "added_tokens_decoder": {"1": {"content": "<|endoftext|>"}},
      "additional_special_tokens": ["a"],
    },
    in_folder("tokenizer_config.json", of_tokenizer),
  ),
  "special_tokens_map": (
    {"bos_token": {"content": "<|startoftext|>"}, "unk_token": "x"},
    in_folder("special_tokens_map.json", of_tokenizer),
  ),
  "added_tokens": ({"b": 3}, in_folder("added_tokens.json", of_tokenizer)),
  "vocab": (TOKENS, in_folder("vocab.json", of_tokenizer)),
  "adapter_config": (
    {
      "peft_type": "LORA",
      "r": 4,
      "lora_alpha": 8,
      "rank_pattern": {"a.b": 2},
      "alpha_pattern": {},
      "bias": "none",
      "modules_to_save": ["c"],
      "unet.use_dora": False,
    },
    in_folder("adapter_config.json", of_adapter),
  ),
  "stored configs": (
    {
      "networks": {
        "vae": {"kind": "autoencoder", "prefix": "x.", "config": VAE}
      },
      "scheduler": DDIM,
      "index": {},
    },
    lambda content: stored_networks(
      read_stored({"ldm_jax.components": content.decode()})
    ),
  ),
}


def numpy_file(save):
  file = io.BytesIO()
  save(file)
  return file.getvalue()


CONTAINERS = {
  "image": (PNG, lambda data: decode_image(io.BytesIO(data), "x")),
  "size": (PNG, lambda data: image_size(io.BytesIO(data))),
  "map": (PNG, in_folder("a.png", lambda f, p: read_map(p))),
  "npy": (
    numpy_file(lambda file: np.save(file, np.arange(3))),
    in_folder("a.npy", lambda f, p: read_npy(p, ConfigError)),
  ),
  "npz": (
    numpy_file(lambda file: np.savez(file, mu=np.arange(3))),
    in_folder("a.npz", lambda f, p: read_npz(p, ["mu"], DataError, 10**6)),
  ),
  "statistics": (
    numpy_file(lambda file: np.savez(file, kind="ldm_jax statistics 1")),
    in_folder("a.npz", lambda f, p: read_statistics(p)),
  ),
  "safetensors": (
    safetensors(),
    in_folder("a.safetensors", lambda f, p: dict(read_tensors(p))),
  ),
}


def places(tree, path=()):
  """Paths of all nodes of a JSON tree."""
  yield path
  items = tree.items() if isinstance(tree, dict) else ()
  items = enumerate(tree) if isinstance(tree, list) else items
  for name, below in items:
    yield from places(below, (*path, name))


def replaced(tree, path, value):
  if not path:
    return value
  tree = copy.deepcopy(tree)
  node = tree
  for name in path[:-1]:
    node = node[name]
  node[path[-1]] = value
  return tree


def is_read_or_refused(reader, content):
  try:
    reader(content)
  except LdmJaxError as error:
    assert "\n" not in str(error)
    assert not isinstance(error, DamagedFile)


def json_property(name, options):
  tree, reader = JSON_FILES[name]

  @options
  @given(st.sampled_from(list(places(tree))), VALUES)
  def holds(path, value):
    text = json.dumps(replaced(tree, path, value))
    is_read_or_refused(reader, text.encode())

  holds()


def container_property(name, options):
  whole, reader = CONTAINERS[name]
  edits = st.tuples(
    st.integers(0, len(whole)), st.integers(0, 9), st.binary(max_size=9)
  )

  @options
  @given(st.one_of(st.binary(max_size=80), st.lists(edits, max_size=4)))
  def holds(change):
    data = change if isinstance(change, bytes) else whole
    if data is whole:
      for start, length, new in change:
        data = data[:start] + new + data[start + length :]
    is_read_or_refused(reader, data)

  holds()


@pytest.mark.parametrize("name", JSON_FILES)
def test_any_json_value_at_any_place(name):
  json_property(name, FEW)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", CONTAINERS)
def test_any_bytes_in_a_container(name):
  container_property(name, FEW)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", [*JSON_FILES, *CONTAINERS])
def test_twenty_thousand_examples_of_files(name):
  many = settings(FEW, max_examples=MANY, derandomize=False)
  check = json_property if name in JSON_FILES else container_property
  check(name, many)
