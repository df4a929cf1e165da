"""Stage two that begins from a folder in the layout of diffusers."""

import jax
import numpy as np
import pytest
import test_pretrained

from ldm_jax.cli import train
from ldm_jax.cli.exit_codes import CommandError
from ldm_jax.pretrained.open_model import open_model
from ldm_jax.run import Run
from ldm_jax.runtime.devices.sharding import MeshShape
from ldm_jax.training import train as train_library

folder, model, clip_prompts = (
  test_pretrained.folder,
  test_pretrained.model,
  test_pretrained.clip_prompts,
)

CONFIG = """
import dataclasses

from ldm_jax.pretrained.open_model import open_model
from ldm_jax.config import Data, Experiment, Reports
from ldm_jax.data.glyphs.source import Glyphs
from ldm_jax.data.transforms.masks import Masks
from ldm_jax.data.text.tokenizers import TokenizerConfig
from ldm_jax.nn.conditioners.spatial import MaskedImage
from ldm_jax.runtime.optimizer import Optimizer
from ldm_jax.training.denoiser import DenoiserTask


def get_config():
  opened = open_model({folder!r})
  (part,) = opened.model.conditioners
  parts = (part.clone(is_frozen={is_frozen}, drop_rate=0.1), *{others})
  model = dataclasses.replace(
    opened.model, first_stage=None, conditioners=parts
  )
  return Experiment(
    task=DenoiserTask(model, optimizer=Optimizer({rate})),
    data=Data(
      source=Glyphs(),
      validation=Glyphs(),
      tokenizer=TokenizerConfig(path={tokenizer!r}, length=77),
      transforms={transforms},
      batch=8,
      held_out=8,
    ),
    reports=Reports(every=1, previews_every=0),
    steps=2,
    start={folder!r},
  )
"""


def flags_of(tmp_path, folder, clip_prompts, **values):
  """A run's flags: two steps from the folder."""
  values = {
    "is_frozen": True,
    "others": (),
    "transforms": (),
    "rate": 1e-3,
  } | values
  config = tmp_path / "config.py"
  config.write_text(
    CONFIG.format(folder=folder, tokenizer=clip_prompts[0], **values)
  )
  return [f"--config={config}", f"--workdir={tmp_path / 'run'}"]


def trained(tmp_path, folder, clip_prompts, **values):
  """The parameters after it, averaged."""
  assert train.main(flags_of(tmp_path, folder, clip_prompts, **values)) == 0
  return open_model(str(tmp_path / "run")).params


def moved(before, after):
  differ = jax.tree.map(lambda a, b: bool((a != b).any()), before, after)
  return any(jax.tree.leaves(differ))


def same(found, expected):
  jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("is_frozen", [True, False])
def test_training_begins_from_a_folder(
  tmp_path, folder, model, clip_prompts, is_frozen
):
  """First stage and scale are the folder's; its text encoder is trained along
  if the config says so."""
  found = trained(tmp_path, folder, clip_prompts, is_frozen=is_frozen)
  _, start = model
  same(found.first_stage, start.first_stage)
  assert found.latent_scale == start.latent_scale
  assert moved(start.unet, found.unet)
  assert moved(start.conditioners, found.conditioners) is not is_frozen


@pytest.mark.slow
def test_inpainting_begins_from_a_folder_of_text(
  tmp_path, folder, model, clip_prompts
):
  """With a tiny learning rate: the text model's parameters, and zeros."""
  found = trained(
    tmp_path,
    folder,
    clip_prompts,
    others="(MaskedImage(),)",
    transforms="(Masks(),)",
    rate=1e-12,
  )
  _, start = model
  wide = found.unet["params"].pop("conv_in")["kernel"]
  before = start.unet["params"]["conv_in"]["kernel"]
  assert wide.shape[2] == 4 + 5 and before.shape[2] == 4
  np.testing.assert_allclose(wide[:, :, :4], before, atol=1e-6)
  np.testing.assert_allclose(wide[:, :, 4:], 0, atol=1e-6)


@pytest.mark.slow
def test_a_run_that_never_saved_begins_again(
  tmp_path, folder, clip_prompts, monkeypatch
):
  """Stopped before its first checkpoint, the run reads the start again."""
  flags, run = (
    flags_of(tmp_path, folder, clip_prompts, rate=1e-12),
    tmp_path / "run",
  )
  with monkeypatch.context() as stop, pytest.raises(KeyboardInterrupt):
    stop.setattr(train_library, "_run", _interrupted)
    train.main(flags)
  assert not Run.open(str(run)).has_step
  assert train.main(flags) == 0
  ours = Run.open(str(run)).trained(MeshShape().build())["unet"]
  start = open_model(folder).params.unet
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), ours, start
  )


def _interrupted(*_, **__):
  raise KeyboardInterrupt


@pytest.mark.slow
def test_another_architecture_is_one_line(tmp_path, folder, clip_prompts):
  flags = flags_of(tmp_path, folder, clip_prompts)
  with pytest.raises(
    CommandError, match="another one than the config's"
  ) as stop:
    train.main([*flags, "--config.task.model.unet.channels=64"])
  assert stop.value.code == 5 and not (tmp_path / "run").exists()
