"""Stage two on CLIP and T5: from captions, and from cached embeddings."""

import pathlib

import clip_tokenizer
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import t5_files
from test_text_encoders import SMALL

import ldm_jax
from ldm_jax.cli import sample, train
from ldm_jax.nn.encoders.clip_text import ClipText
from ldm_jax.pretrained.text.t5_config import t5
from ldm_jax.run import Run
from ldm_jax.runtime.devices.sharding import MeshShape

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"
ENCODER = t5(t5_files.CONFIG)
CONFIG = """
import dataclasses

from ldm_jax import config
from ldm_jax.data.text.tokenizers import TokenizerConfig
from ldm_jax.nn.encoders.clip_text import ClipText
from ldm_jax.nn.encoders.t5 import T5Encoder
from ldm_jax.nn.conditioners.clip_embedder import ClipEmbedder
from ldm_jax.nn.conditioners.t5_embedder import T5Embedder
from ldm_jax.nn.unet import AttentionPlan, UNet


def get_config():
  made = config.load({base!r})
  clip = ClipEmbedder(
    ({clip},), **{ids}, is_pooled=True, context_width=32, drop_rate=0.5
  )
  text = T5Embedder({t5}, 16, drop_rate=0.5)
  unet = UNet(
    8, 16, (1,), 1, AttentionPlan((1,), heads=2), groups=4, vector="mlp"
  )
  model = dataclasses.replace(
    made.task.model, unet=unet, conditioners=(clip, text)
  )
  task = dataclasses.replace(made.task, model=model, preview_steps=2)
  data = dataclasses.replace(
    made.data,
    tokenizer=TokenizerConfig(path={tokenizer!r}, length=77),
    t5_tokenizer=TokenizerConfig(path={t5_tokenizer!r}, length=16),
  )
  return dataclasses.replace(
    made, task=task, data=data, text_encoders={folders}
  )
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  """A first stage, folders of text encoders, and a config with all."""
  root = tmp_path_factory.mktemp("t5")
  tokenizer = clip_tokenizer.tokenizer(root / "tokenizer")
  tokenizer.save_pretrained(root / "tokenizer")
  t5_files.tokenizer_folder(root / "t5_tokenizer")
  end = tokenizer.eos_token_id
  clip = ClipText(len(tokenizer), 16, 1, 2, hidden=24, end=end)
  ids = jnp.zeros((1, 77), jnp.int32)
  for i, (name, encoder) in enumerate({"clip": clip, "t5": ENCODER}.items()):
    variables = jax.jit(encoder.init)(jax.random.key(i), ids)
    ldm_jax.save_pretrained(encoder, variables, str(root / name))
  special = {
    "begin": tokenizer.bos_token_id,
    "end": end,
    "paddings": (tokenizer.pad_token_id,),
  }
  fields = ("vocabulary", "width", "depth", "heads", "head_width", "hidden")
  fields += ("buckets", "distance")
  asked = ", ".join(f"{name}={getattr(ENCODER, name)}" for name in fields)
  text = CONFIG.format(
    base=str(CONFIGS / "glyphs_velocity.py"),
    clip=f"ClipText({len(tokenizer)}, 16, 1, 2, hidden=24, end={end})",
    t5=f"T5Encoder({asked})",
    ids=special,
    folders=(str(root / "clip"), str(root / "t5")),
    tokenizer=str(root / "tokenizer"),
    t5_tokenizer=str(root / "t5_tokenizer"),
  )
  (root / "config.py").write_text(text)
  flags = [
    "--config.task.autoencoder.trunk.channels=8",
    "--config.task.autoencoder.trunk.multipliers=1,2",
    "--config.task.autoencoder.trunk.groups=4",
  ]
  config = f"--config={CONFIGS / 'glyphs_autoencoder.py'}"
  assert train.main([config, f"--workdir={root / 'ae'}", *flags, *SMALL]) == 0
  return root


def flags_of(root):
  return [
    f"--config={root / 'config.py'}",
    # Muon takes long to compile; see test_runtime.
    "--config.task.optimizer.muon=none",
    *SMALL,
  ]


def learn(root, folder, *flags):
  first_stage = f"--config.first_stage={root / 'ae'}"
  workdir = f"--workdir={folder}"
  return train.main([*flags_of(root), first_stage, workdir, *flags])


@pytest.fixture(scope="module")
def captioned(root):
  """A run on captions."""
  assert learn(root, root / "captions") == 0
  return root / "captions"


@pytest.mark.slow
def test_a_run_on_two_kinds_of_text_encoders_is_sampled(captioned, tmp_path):
  run = Run.open(str(captioned))
  assert run.batch["tokens"].shape == (8, 77)
  assert run.batch["t5_tokens"].shape == (8, 16)
  frozen = run.frozen(MeshShape().build()).conditioners
  assert set(frozen) == {"tokens", "t5_tokens"}
  flags = ["--prompt", "a red circle", "--steps=2", "-H=32", "-W=32"]
  out = tmp_path / "out"
  command = [f"--model={captioned}", "--out", str(out), *flags]
  assert sample.main(command) == 0
  assert np.any(list(out.iterdir()))
