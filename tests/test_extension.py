"""Classes of a user's package: trained, saved, resumed, read back."""

import dataclasses
import json
import sys

import jax
import numpy as np
import pytest

from ldm_jax import config, config_json
from ldm_jax.cli import train as train_command
from ldm_jax.cli.exit_codes import CommandError
from ldm_jax.config import Data, Experiment, Reports
from ldm_jax.diffusion.schedule import Schedule
from ldm_jax.errors import ConfigError
from ldm_jax.latent_diffusion import LatentDiffusion
from ldm_jax.nn.autoencoder import PixelSpace
from ldm_jax.run import Run
from ldm_jax.runtime.checkpointing.policy import CheckpointPolicy
from ldm_jax.runtime.devices.sharding import MeshShape
from ldm_jax.training.denoiser import DenoiserTask
from ldm_jax.training.train import train

PACKAGE = '''
from __future__ import annotations

import dataclasses
import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from typing import Any


class Mixer(nn.Module):
  """A backbone."""

  width: int = 8
  size_multiple = 1

  @nn.compact
  def __call__(self, xt, t, condition):
    h = nn.Dense(self.width, name="inside")(xt)
    time = nn.Dense(self.width, name="time")(t[:, None])
    h = nn.silu(h + time[:, None, None])
    return nn.Dense(xt.shape[-1], name="outside")(h).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class Noise:
  """A source."""

  count: int = 16

  def __len__(self):
    return self.count

  def __getitem__(self, index):
    rng = np.random.default_rng(index)
    return {"image": rng.integers(0, 256, (8, 8, 3), np.uint8)}


@dataclasses.dataclass(frozen=True)
class Huber:
  """A loss."""

  delta: float = 0.1
  prediction: str = "eps"
  density: str = "uniform"

  def __call__(self, schedule, network, x0, t, noise):
    from ldm_jax.diffusion.schedule import q_sample

    error = noise - network(q_sample(schedule, x0, t, noise), t)
    return optax.huber_loss(error, delta=self.delta).mean((1, 2, 3))


class State(flax.struct.PyTreeNode):
  step: Any
  params: Any
  opt: Any


@dataclasses.dataclass(frozen=True)
class Lines:
  """A tracker."""

  file: str

  def open(self, folder, step):
    return self

  def log(self, step, metrics):
    with open(self.file, "a") as file:
      file.write(f"{step}\\n")

  def image(self, step, name, array):
    pass

  def close(self):
    pass


@dataclasses.dataclass(frozen=True)
class MeanColour:
  """A task without a model: learns the mean colour of all images."""

  rate: float = 0.1

  def frozen_shapes(self, batch):
    return None

  def init(self, key, batch, frozen):
    params = {"colour": jnp.zeros(3)}
    opt = optax.sgd(self.rate).init(params)
    return State(jnp.zeros((), jnp.int32), params, opt)

  def _loss(self, params, batch):
    return jnp.square(batch["image"] / 255.0 - params["colour"]).mean()

  def step(self, state, frozen, batch, key):
    loss, grads = jax.value_and_grad(self._loss)(state.params, batch)
    updates, opt = optax.sgd(self.rate).update(grads, state.opt)
    params = optax.apply_updates(state.params, updates)
    return State(state.step + 1, params, opt), {"loss": loss}

  def measure(self, state, frozen, batch, key):
    return {"loss": self._loss(state.params, batch)}

  def preview(self, state, frozen, batch, key):
    return {}
'''


@pytest.fixture(scope="module")
def own(tmp_path_factory):
  """The module `own_package.parts`, importable."""
  root = tmp_path_factory.mktemp("own")
  (root / "own_package").mkdir()
  (root / "own_package" / "__init__.py").touch()
  (root / "own_package" / "parts.py").write_text(PACKAGE)
  sys.path.insert(0, str(root))
  try:
    import own_package.parts

    yield own_package.parts
  finally:
    sys.path.remove(str(root))


def experiment(own, steps=2, **fields):
  """A user-defined backbone, source and loss."""
  task = DenoiserTask(
    model=LatentDiffusion(
      first_stage=PixelSpace(),
      unet=own.Mixer(),
      schedule=Schedule(steps=50),
    ),
    loss=own.Huber(),
    latent_scale=1.0,
  )
  data = Data(own.Noise(), own.Noise(8), batch=8, held_out=8)
  every = CheckpointPolicy(every=2)
  reports = Reports(every=1, previews_every=0)
  whole = Experiment(task, data, steps, checkpoints=every, reports=reports)
  return dataclasses.replace(whole, **fields)


def test_user_classes_are_trained_resumed_and_read_back(own, tmp_path):
  folder = str(tmp_path / "run")
  lines = tmp_path / "lines"
  first = train(experiment(own, trackers=(own.Lines(str(lines)),)), folder)
  assert first.step == 2 and first.interrupted is None
  assert np.isfinite(first.metrics["loss"])
  assert set(lines.read_text().split()) == {"1", "2"}
  second = train(experiment(own, steps=4), folder)
  assert second.step == 4 and second.metrics["step"] == 4
  whole = train(experiment(own, steps=4), str(tmp_path / "whole"))
  sharding = MeshShape().build()
  runs = [Run.open(p, ("own_package",)) for p in (folder, whole.workdir)]
  a, b = (run.trained(sharding)["unet"] for run in runs)
  jax.tree.map(np.testing.assert_array_equal, a, b)
  assert runs[0].experiment.task.model.unet == own.Mixer()

  with pytest.raises(ConfigError, match="--trust own_package"):
    Run.open(folder)
  with pytest.raises(ConfigError, match="--trust own_package"):
    Run.open(folder, ("own",))


def test_a_user_defined_task_is_trained_and_resumed(own, tmp_path):
  folder = str(tmp_path / "run")
  mean = lambda steps: experiment(own, steps=steps, task=own.MeanColour())
  train(mean(2), folder)
  assert train(mean(4), folder).step == 4
  run = Run.open(folder, ("own_package",))
  colour = run.trained(MeshShape().build())["colour"]
  assert colour.shape == (3,) and (np.asarray(colour) > 0).all()


def test_a_class_of_the_config_file_is_refused_before_a_step(tmp_path):
  path = tmp_path / "config.py"
  path.write_text(
    PACKAGE.replace("from __future__ import annotations\n", "")
    + """
def get_config():
  from ldm_jax.config import Data, Experiment
  return Experiment(MeanColour(), Data(Noise(), Noise()), 2)
"""
  )
  with pytest.raises(CommandError, match="move it to the top level") as stop:
    train_command.main([f"--config={path}", f"--workdir={tmp_path / 'run'}"])
  assert stop.value.code == 2 and not (tmp_path / "run").exists()


def test_what_json_cannot_hold_is_refused(own):
  bad = experiment(own, task=own.MeanColour(rate=np.float32(1)))
  with pytest.raises(ConfigError, match=r"task.rate: needs numbers, text"):
    config.check_readable(bad)
  config.check_readable(experiment(own))


def test_a_user_class_is_named_on_the_command_line(own):
  base = experiment(own)
  changed = config.override(
    base,
    {
      "task.model.unet": "own_package.parts:Mixer",
      "task.model.unet.width": "4",
      "data.augment": "Augment",
      "data.augment.size": "8",
      "task.lora": "LoRA",
      "task.lora.rank": "8",
    },
  )
  assert changed.task.model.unet == own.Mixer(4)
  assert changed.data.augment.size == 8 and changed.task.lora.rank == 8
  off = config.override(changed, {"task.lora": "none", "data.augment": "none"})
  assert off.task.lora is None and off.data.augment is None
  with pytest.raises(ConfigError, match="needs size"):
    config.override(base, {"data.augment": "Augment"})
  with pytest.raises(ConfigError, match="needs Augment, got 'LoRA'"):
    config.override(base, {"data.augment": "LoRA"})


def test_only_dataclasses_are_made_from_json():
  tree = config_json.to_json(config.load("glyphs_class"))
  tree["data"]["source"] = {"class": "subprocess:Popen", "args": "ls"}
  with pytest.raises(ConfigError, match="--trust subprocess"):
    config.from_json(json.loads(json.dumps(tree)))
  with pytest.raises(ConfigError, match="is not a dataclass"):
    config.from_json(tree, ("subprocess",))


def test_every_class_of_the_table_exists():
  for name in config_json.CLASSES:
    assert config_json.class_name(config_json.find_class(name, "")) == name
