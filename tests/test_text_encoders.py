"""Stage two on a pretrained text encoder, and its export."""

import pathlib

import clip_tokenizer
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import random_variables
from untrained import untrained

import ldm_jax
from ldm_jax.cli import convert, sample, train
from ldm_jax.cli.exit_codes import CommandError
from ldm_jax.nn.encoders.clip_text import ClipText
from ldm_jax.run import Run
from ldm_jax.runtime.devices.sharding import MeshShape

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"
SMALL = [
  "--config.data.batch=8",
  "--config.data.held_out=8",
  "--config.data.source.size=40",
  "--config.reports.previews_every=0",
  "--config.steps=2",
  "--config.checkpoints.every=2",
]
CONFIG = """
import dataclasses

from ldm_jax import config
from ldm_jax.data.text.tokenizers import TokenizerConfig
from ldm_jax.nn.encoders.clip_text import ClipText
from ldm_jax.nn.conditioners.clip_embedder import ClipEmbedder
from ldm_jax.nn.unet import AttentionPlan, UNet


def get_config():
  made = config.load({base!r})
  embedder = ClipEmbedder(({encoder},), **{ids})
  unet = UNet(8, 16, (1,), 1, AttentionPlan((1,), heads=2), groups=4)
  model = dataclasses.replace(
    made.task.model, unet=unet, conditioners=(embedder,)
  )
  task = dataclasses.replace(made.task, model=model, preview_steps=2)
  tokenizer = TokenizerConfig(path={tokenizer!r}, length=77)
  data = dataclasses.replace(made.data, tokenizer=tokenizer)
  return dataclasses.replace(made, task=task, data=data)
"""


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
  """A first stage, a folder of a text encoder, and a config with both."""
  root = tmp_path_factory.mktemp("encoders")
  tokenizer = clip_tokenizer.tokenizer(root / "tokenizer")
  tokenizer.save_pretrained(root / "tokenizer")
  encoder = ClipText(
    len(tokenizer), 16, 2, 2, hidden=24, end=tokenizer.eos_token_id
  )
  ids = jax.ShapeDtypeStruct((1, 77), jnp.int32)
  variables = random_variables(encoder, ids)
  ldm_jax.save_pretrained(encoder, variables, str(root / "encoder"))
  ids = {
    "begin": tokenizer.bos_token_id,
    "end": tokenizer.eos_token_id,
    "paddings": (tokenizer.pad_token_id,),
  }
  end = tokenizer.eos_token_id
  asked = f"ClipText({len(tokenizer)}, 16, 2, 2, hidden=24, end={end})"
  text = CONFIG.format(
    base=str(CONFIGS / "glyphs_velocity.py"),
    encoder=asked,
    ids=ids,
    tokenizer=str(root / "tokenizer"),
  )
  (root / "config.py").write_text(text)
  flags = [
    "--config.task.autoencoder.trunk.channels=8",
    "--config.task.autoencoder.trunk.multipliers=1,2",
    "--config.task.autoencoder.trunk.groups=4",
  ]
  path = CONFIGS / "glyphs_autoencoder.py"
  untrained(path, root / "ae", [*flags, *SMALL])
  return root, variables


def learn(root, folder, *flags):
  return train.main(
    [
      f"--config={root / 'config.py'}",
      f"--workdir={folder}",
      f"--config.first_stage={root / 'ae'}",
      # Muon takes long to compile; see test_runtime.
      "--config.task.optimizer.muon=none",
      *SMALL,
      *flags,
    ]
  )


@pytest.mark.slow
def test_a_model_with_a_trained_text_encoder_is_exported_whole(
  parts, tmp_path, capsys
):
  root, encoder = parts
  folder = tmp_path / "run"
  flag = f"--config.text_encoders={root / 'encoder'}"
  assert learn(root, folder, flag) == 0
  assert not (folder / "previews").exists()
  run = Run.open(str(folder))
  trained = run.trained(MeshShape().build())
  assert trained["conditioners"] == {}  # neither trained nor averaged
  assert convert.main([str(folder), str(tmp_path / "out")]) == 0
  model, params = ldm_jax.from_pretrained(str(tmp_path / "out"))
  found = params.conditioners["tokens"]["params"]["encoders_0"]
  jax.tree.map(np.testing.assert_array_equal, found, encoder["params"])
  jax.tree.map(np.testing.assert_array_equal, params.unet, trained["unet"])
  assert model.prediction == "v"
  frozen = run.frozen(MeshShape().build())
  np.testing.assert_allclose(params.latent_scale, frozen.latent_scale)
  images = []
  for name in (folder, tmp_path / "out"):
    out = str(tmp_path / f"sampled_{pathlib.Path(name).name}")
    flags = ["--prompt", "a red fox", "--steps=2", "--output=latent"]
    flags += ["--guidance=2", "-H=32", "-W=32", "--out", out]
    capsys.readouterr()
    assert sample.main([f"--model={name}", *flags]) == 0
    images.append(np.load(capsys.readouterr().out.strip()))
  # Stable Diffusion's samplers stop at the first time, ours at the image.
  assert images[0].shape == images[1].shape
  assert np.abs(images[0] - images[1]).max() < 0.1 * np.abs(images[0]).max()


@pytest.mark.parametrize(
  ("flags", "line"),
  [
    ([], "text_encoders names 0 folders"),
    (["--config.text_encoders={root}/tokenizer"], "config.json"),
    (
      [
        "--config.text_encoders={root}/encoder",
        "--config.task.model.conditioners.0.encoders.0.depth=3",
      ],
      "depth=2.*depth=3",
    ),
    (
      [
        "--config.text_encoders={root}/encoder",
        "--config.data.tokenizer.length=20",
      ],
      "20 each.*multiple of 77",
    ),
  ],
)
def test_what_does_not_fit_is_refused(parts, tmp_path, flags, line):
  root, _ = parts
  flags = [flag.format(root=root) for flag in flags]
  with pytest.raises(CommandError, match=line) as stop:
    learn(root, tmp_path / "run", *flags)
  assert stop.value.code == 2
  assert not (tmp_path / "run").exists()
