"""A run is resumed with its own data and settings, or says what changed."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from ldm_jax import config
from ldm_jax.cli import train
from ldm_jax.cli.exit_codes import CommandError
from ldm_jax.data.fingerprint import changes, fingerprint
from ldm_jax.data.glyphs.source import Glyphs
from ldm_jax.data.sources.folder import Folder
from ldm_jax.data.sources.mix import Mix
from ldm_jax.errors import ConfigError
from ldm_jax.run import Run
from ldm_jax.training import resume
from ldm_jax.training.resume import ResumeOptions, check_data, check_resumable

OVERRIDE = ResumeOptions(override=True)


@pytest.fixture
def folder(tmp_path):
  for name in ("b/0.png", "b/1.png", "c/2.png"):
    add(tmp_path / "data", name)
  return tmp_path / "data"


def add(root, name):
  (root / name).parent.mkdir(parents=True, exist_ok=True)
  Image.new("RGB", (8, 8)).save(root / name)


def experiment_of(folder):
  base = config.load("glyphs_class")
  data = dataclasses.replace(
    base.data, source=Folder(str(folder)), validation=Folder(str(folder))
  )
  return dataclasses.replace(base, data=data)


def run_of(tmp_path, experiment):
  batch = {"image": jax.ShapeDtypeStruct((128, 8, 8, 3), np.uint8)}
  run = Run(str(tmp_path / "run"), experiment, batch)
  run.write()
  resume.write_fingerprints(run.folder, experiment)
  return run


def test_the_same_data_is_resumed(tmp_path, folder):
  run = run_of(tmp_path, experiment_of(folder))
  again = experiment_of(folder)
  assert check_data(run, again, ResumeOptions()) == []
  assert check_resumable(run, again, ResumeOptions()) == []


CHANGED = {
  "a/9.png": "new classes: a; the labels of 2 classes change, 'b' from 0 to 1",
  "c/3.png": "training data: 3 examples became 4",
}


@pytest.mark.parametrize("name", CHANGED)
def test_changed_data_is_refused_unless_allowed(name, tmp_path, folder):
  run = run_of(tmp_path, experiment_of(folder))
  add(folder, name)
  with pytest.raises(ConfigError, match="--allow_changed_data") as error:
    check_data(run, experiment_of(folder), ResumeOptions())
  assert CHANGED[name] in str(error.value) and "\n" not in str(error.value)
  allowed = ResumeOptions(allow_changed_data=True)
  found = check_data(run, experiment_of(folder), allowed)
  resume.record_changes(run, found)
  line = json.loads((tmp_path / "run" / "changes.jsonl").read_text())
  assert line["changes"] == found and line["step"] == 0


def test_a_renamed_image_and_a_missing_class_are_noticed(folder):
  before = fingerprint(Folder(str(folder)))
  (folder / "b/0.png").rename(folder / "b/7.png")
  now = fingerprint(Folder(str(folder)))
  assert changes(before, now) == ["other names of the 3 examples"]
  shutil.rmtree(folder / "b")
  assert "missing classes: b" in changes(
    before, fingerprint(Folder(str(folder)))
  )


def test_a_moved_folder_is_named_by_its_field(tmp_path, folder):
  run = run_of(tmp_path, experiment_of(folder))
  moved = tmp_path / "elsewhere"
  folder.rename(moved)
  with pytest.raises(ConfigError, match=r"does not exist.*data.source.path="):
    check_data(run, experiment_of(folder), ResumeOptions())
  there = experiment_of(moved)
  assert check_data(run, there, ResumeOptions()) == []
  assert len(check_resumable(run, there, ResumeOptions())) == 2  # recorded


def test_sources_without_names_have_a_fingerprint():
  mixed = Mix((Glyphs(size=4), Glyphs(size=5)), (1.0, 1.0))
  assert fingerprint(mixed)["count"] == len(mixed)
  assert changes(fingerprint(mixed), fingerprint(Glyphs(size=4)))


def test_a_run_of_an_earlier_version_has_no_fingerprint(tmp_path, folder):
  run = run_of(tmp_path, experiment_of(folder))
  (tmp_path / "run" / "data.json").unlink()
  assert check_data(run, experiment_of(folder), ResumeOptions()) == []
  (tmp_path / "run" / "data.json").write_text("{}")
  with pytest.raises(ConfigError, match="is damaged"):
    check_data(run, experiment_of(folder), ResumeOptions())


SAFE = {
  "task.optimizer.rate": "1e-5",
  "task.optimizer.warmup": "7",
  "data.batch": "16",
  "task.ema_decay": "0.5",
  "task.model.conditioners.0.drop_rate": "0.3",
  "seed": "3",
}


@pytest.mark.parametrize("path", SAFE)
def test_a_safe_change_needs_override(path, tmp_path, folder, monkeypatch):
  monkeypatch.setattr(resume, "_has_same_state", lambda *_: True)
  run = run_of(tmp_path, experiment_of(folder))
  changed = config.override(run.experiment, {path: SAFE[path]})
  with pytest.raises(ConfigError, match="--override") as error:
    check_resumable(run, changed, ResumeOptions())
  assert f"config.{path}: " in str(error.value)
  (line,) = check_resumable(run, changed, OVERRIDE)
  assert line.startswith(f"config.{path}: ")


def test_another_change_names_start(tmp_path, folder):
  run = run_of(tmp_path, experiment_of(folder))
  changed = config.override(run.experiment, {"task.model.unet.blocks": "3"})
  with pytest.raises(ConfigError, match=r"--config.start=.*run") as error:
    check_resumable(run, changed, OVERRIDE)
  assert "config.task.model.unet.blocks" in str(error.value)


def test_another_state_of_the_optimizer_names_start(
  tmp_path, folder, monkeypatch
):
  monkeypatch.setattr(resume, "_has_same_state", lambda *_: False)
  run = run_of(tmp_path, experiment_of(folder))
  changed = config.override(run.experiment, {"task.optimizer.muon": "1e-3"})
  with pytest.raises(ConfigError, match=r"another state.*--config.start="):
    check_resumable(run, changed, OVERRIDE)


def test_shapes_follow_the_batch():
  shapes = {
    "image": jax.ShapeDtypeStruct((8, 4, 4, 3), np.uint8),
    "other": jax.ShapeDtypeStruct((3,), np.int32),
  }
  now = resume.with_batch(shapes, 8, 16)
  assert now["image"].shape == (16, 4, 4, 3) and now["other"].shape == (3,)


def test_steps_change_freely(tmp_path, folder):
  run = run_of(tmp_path, experiment_of(folder))
  longer = config.override(run.experiment, {"steps": "1e6"})
  assert check_resumable(run, longer, ResumeOptions()) == []


ONE = [
  "--config=glyphs_autoencoder",
  "--config.task.autoencoder.trunk.channels=8",
  "--config.task.autoencoder.trunk.multipliers=1,2",
  "--config.task.autoencoder.trunk.groups=4",
  "--config.data.held_out=8",
  "--config.data.source.size=40",
  "--config.reports.every=1",
  "--config.reports.previews_every=0",
]


@pytest.mark.slow
def test_a_run_is_resumed_with_another_rate_and_batch(tmp_path, capsys):
  folder = tmp_path / "run"
  command = [*ONE, f"--workdir={folder}"]
  new = ["--config.data.batch=16", "--config.task.optimizer.rate=1e-5"]
  assert (
    train.main([*command, "--config.steps=2", "--config.data.batch=8"]) == 0
  )
  with pytest.raises(CommandError, match="--override"):
    train.main([*command, "--config.steps=3", *new])
  assert train.main([*command, "--config.steps=3", *new, "--override"]) == 0
  assert json.loads(capsys.readouterr().out.splitlines()[-1])["step"] == 3
  (line,) = (folder / "changes.jsonl").read_text().splitlines()
  assert json.loads(line)["step"] == 2 and len(json.loads(line)["changes"]) == 2
  run = Run.open(str(folder))
  assert run.experiment.data.batch == 16
  assert {shape.shape[0] for shape in run.batch.values()} == {16}
  other = [*new[:1], "--config.data.source.size=41", "--override"]
  with pytest.raises(CommandError, match=r"another experiment.*size"):
    train.main([*command, "--config.steps=3", *other])
