"""Stage two on CLIP and T5: from captions, and from cached embeddings."""

import gc
import json
import pathlib
import shutil

import clip_tokenizer
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import t5_files
from test_text_encoders import SMALL
from untrained import untrained

import ldm_jax
from ldm_jax.cli import prepare, sample, train
from ldm_jax.cli.exit_codes import CommandError
from ldm_jax.nn.encoders.clip_text import ClipText
from ldm_jax.pretrained.text.t5_config import t5
from ldm_jax.run import Run
from ldm_jax.runtime.devices.sharding import MeshShape
from ldm_jax.runtime.monitoring.metric_writer import read_metrics
from ldm_jax.training.trainer import Trainer, TrainingOutcome

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
    t5=f"T5Encoder({asked}, is_scanned=True)",
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
  path = CONFIGS / "glyphs_autoencoder.py"
  untrained(path, root / "ae", [*flags, *SMALL])
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
def latents(root):
  """Latents of the config's images, and the outputs for their captions."""
  folder = root / "latents"
  assert write(root, folder, "--texts", "--dtype=float32") == 0
  return folder


def write(root, folder, *flags):
  config, *others = flags_of(root)
  source = [flag for flag in others if ".source." in flag]
  command = [config, *source, f"--first_stage={root / 'ae'}", "--batch=8"]
  return prepare.main([*command, f"--out={folder}", *flags])


@pytest.fixture(scope="module")
def captioned(root, latents):
  """A run on the same latents, and the captions themselves."""
  other = root / "captions_alone"
  shutil.copytree(latents, other)
  manifest = json.loads((other / "manifest.json").read_text())
  texts = manifest.pop("texts")
  assert set(texts) == {"tokens", "t5_tokens"}
  arrays = manifest["arrays"]
  kept = {n: x for n, x in arrays.items() if not n.startswith(tuple(texts))}
  assert len(arrays) - len(kept) == 3  # two contexts and a vector
  stored = json.dumps(manifest | {"arrays": kept})
  (other / "manifest.json").write_text(stored)
  assert learn(root, root / "captions", f"--config.data.latents={other}") == 0
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
  assert any(out.iterdir())


@pytest.mark.slow
def test_cached_texts_train_as_captions_do(root, captioned, latents):
  """Dropped prompts included, which are about half of them."""
  cached = root / "cached"
  assert learn(root, cached, f"--config.data.latents={latents}") == 0
  runs = [Run.open(str(folder)) for folder in (cached, captioned)]
  ours, theirs = (run.trained(MeshShape().build()) for run in runs)
  for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
  losses = [
    [row["loss"] for row in read_metrics(str(folder)) if "loss" in row]
    for folder in (cached, captioned)
  ]
  np.testing.assert_allclose(*losses, rtol=1e-4)
  # The run samples prompts: it holds the text encoders themselves.
  frozen = runs[0].frozen(MeshShape().build()).conditioners
  assert "encoder" in frozen["t5_tokens"]["params"]


@pytest.mark.slow
def test_text_encoders_leave_the_devices_for_cached_texts(
  root, latents, tmp_path, monkeypatch
):
  """Among the arrays of a step there is no embedding of T5."""
  shape = ENCODER.vocabulary, ENCODER.width

  def tables():
    gc.collect()
    return sum(array.shape == shape for array in jax.live_arrays())

  counts = []
  monkeypatch.setattr(
    Trainer, "run", lambda *_: counts.append(tables()) or TrainingOutcome(0)
  )
  before = tables()
  learn(root, tmp_path / "cached", f"--config.data.latents={latents}")
  other = tmp_path / "captions"
  shutil.copytree(latents, other)
  manifest = json.loads((other / "manifest.json").read_text())
  manifest["texts"] = {}
  names = [n for n in manifest["arrays"] if "tokens" in n]
  for name in names:
    del manifest["arrays"][name]
  (other / "manifest.json").write_text(json.dumps(manifest))
  learn(root, tmp_path / "run", f"--config.data.latents={other}")
  assert counts[0] == before < counts[1]


@pytest.mark.slow
@pytest.mark.parametrize(
  ("flag", "line"),
  [
    ("1.length=8", "made by another text conditioner of 't5_tokens'"),
    ("1.is_frozen=False", "'t5_tokens' is trained, and data.latents"),
    ("0.is_normed=False", "made by another text conditioner of 'tokens'"),
  ],
)
def test_texts_of_other_conditioners_are_refused(
  root, latents, tmp_path, flag, line
):
  flags = [f"--config.data.latents={latents}"]
  flags += [f"--config.task.model.conditioners.{flag}"]
  flags += ["--config.data.t5_tokenizer.length=8"] * ("length" in flag)
  with pytest.raises(CommandError, match=line) as stop:
    learn(root, tmp_path / "run", *flags)
  assert stop.value.code == 2
  assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_what_cannot_be_cached_is_refused(root, tmp_path):
  trained = "--config.task.model.conditioners.1.is_frozen=False"
  with pytest.raises(CommandError, match=r"'t5_tokens' is trained.*--texts"):
    write(root, tmp_path / "out", "--texts", trained)
  config = f"--config={root / 'config.py'}"
  with pytest.raises(CommandError, match="next to latents; give first_stage"):
    prepare.main([config, f"--out={tmp_path / 'out'}", "--texts"])
