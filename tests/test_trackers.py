"""Trackers receive the values of metrics.jsonl; their errors end no run."""

import contextlib
import dataclasses
import glob
import json
import logging
import pathlib
import sqlite3
import sys
import time

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tensorboard.backend.event_processing.event_accumulator import (
  EventAccumulator,
)

from ldm_jax import config
from ldm_jax.errors import ConfigError
from ldm_jax.run import Run
from ldm_jax.runtime.monitoring.hyperparameters import hyperparameters
from ldm_jax.runtime.monitoring.metric_writer import MetricWriter, read_metrics
from ldm_jax.runtime.monitoring.mlflow_tracker import MLflow
from ldm_jax.runtime.monitoring.tracker_names import (
  BY_NAME,
  check_trackers,
  tracker_of,
)
from ldm_jax.runtime.monitoring.trackers import TensorBoard, Tracker
from ldm_jax.runtime.monitoring.wandb_tracker import Trackio, Wandb
from ldm_jax.runtime.optimizer import Optimizer
from ldm_jax.training.train import train

RECEIVED = []


@dataclasses.dataclass(frozen=True)
class Listed(Tracker):
  """A tracker of one method, as a user would write it."""

  def log(self, step, metrics):
    RECEIVED.append((step, metrics))


@dataclasses.dataclass(frozen=True)
class Failing(Tracker):
  """Raises OSError in one of its methods, and counts the calls."""

  method: str
  calls: list = dataclasses.field(default_factory=list)

  def _called(self, name):
    self.calls.append(name)
    if name == self.method:
      raise OSError("connection lost")

  def open(self, folder, step):
    self._called("open")
    return self

  def log(self, step, metrics):
    self._called("log")

  def image(self, step, name, array):
    self._called("image")

  def close(self):
    self._called("close")


def events_of(folder):
  events = EventAccumulator(str(folder / "tensorboard"))
  return events.Reload()


def test_a_tracker_of_one_method_receives_every_report(tmp_path):
  RECEIVED.clear()
  trackers = (Listed(), TensorBoard())
  writer = MetricWriter(str(tmp_path), trackers=trackers)
  with contextlib.closing(writer):
    writer.write(1, {"loss": 0.5})
    writer.write(2, {"loss": float("inf")})
    writer.image(2, "samples", np.zeros((4, 4, 3), np.uint8))
  assert [
    (1, {"train/loss": 0.5}),
    (2, {"train/loss": float("inf")}),
  ] == RECEIVED
  assert [line["loss"] for line in read_metrics(str(tmp_path))] == [0.5, None]


def test_only_the_first_process_opens_trackers(tmp_path):
  tracker = Failing("never")
  writer = MetricWriter(str(tmp_path), is_writer=False, trackers=(tracker,))
  writer.write(1, {"loss": 1.0})
  writer.close()
  assert tracker.calls == [] and not list(tmp_path.iterdir())


def test_a_tracker_that_raises_os_error_is_dropped_and_the_run_continues(
  tmp_path, caplog
):
  for method, calls in (
    ("open", ["open"]),
    ("log", ["open", "log"]),
    ("image", ["open", "log", "image"]),
    ("close", ["open", "log", "image", "log", "close"]),
  ):
    caplog.clear()
    folder, tracker = str(tmp_path / method), Failing(method)
    writer = MetricWriter(folder, trackers=(tracker, TensorBoard()))
    writer.write(1, {"loss": 1.0})
    writer.image(1, "samples", np.zeros((4, 4, 3), np.uint8))
    writer.write(2, {"loss": 2.0})
    writer.close()
    assert tracker.calls == calls
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "tracker Failing is not used any more" in record.message
    assert [line["loss"] for line in read_metrics(folder)] == [1.0, 2.0]


def test_tensorboard_hides_what_lies_beyond_a_resumed_step(tmp_path):
  for begin, losses in ((0, {1: 0.1, 2: 0.2, 3: 0.3}), (1, {2: 5.0})):
    writer = MetricWriter(str(tmp_path), begin)
    for step, loss in losses.items():
      writer.write(step, {"loss": loss})
    writer.image(begin + 1, "samples", np.zeros((4, 4, 3), np.uint8))
    writer.close()
    time.sleep(1.1)  # event files are named by the second
  events = events_of(tmp_path)
  found = [(event.step, event.value) for event in events.Scalars("train/loss")]
  np.testing.assert_allclose(found, [(1, 0.1), (2, 5.0)], rtol=1e-6)
  assert [event.step for event in events.Images("samples")][-1] == 2


def written_run(folder):
  """A folder with the config.json of a run."""
  Run(str(folder), config.load("glyphs_class"), {}).write()
  return str(folder)


def log_twice(folder, tracker):
  """A run of steps 1 and 2, resumed from step 1."""
  image = np.zeros((4, 4, 3), np.uint8)
  for begin in (0, 1):
    writer = MetricWriter(folder, begin, trackers=(tracker,))
    for step in range(begin + 1, 3):
      writer.write(step, {"loss": begin + 0.25, "images_per_second": 9.0})
    writer.write(2, {"validation_psnr": 20.0 + begin})
    writer.image(2, "samples", image)
    writer.close()


def test_metrics_are_grouped_for_trackers(tmp_path):
  log_twice(str(tmp_path), TensorBoard())
  scalars = events_of(tmp_path).Tags()["scalars"]
  assert set(scalars) == {"train/loss", "perf/images_per_second", "val/psnr"}
  assert {"loss", "validation_psnr"} <= read_metrics(str(tmp_path))[
    -1
  ].keys() | read_metrics(str(tmp_path))[0].keys()


def test_hyperparameters_are_the_fields_of_the_config(tmp_path):
  folder = written_run(tmp_path)
  found = hyperparameters(folder)
  base = config.load("glyphs_class")
  assert found["task.optimizer.rate"] == base.task.optimizer.rate
  assert found["task.model.conditioners.0.classes"] == 48
  assert json.loads(found["task.optimizer.betas"]) == [0.9, 0.99]
  assert all(isinstance(v, str | int | float | None) for v in found.values())
  assert hyperparameters(str(tmp_path / "none")) == {}
  log_twice(folder, TensorBoard())
  plugins = events_of(tmp_path).SummaryMetadata
  assert plugins("_hparams_/session_start_info").plugin_data.content


@pytest.mark.parametrize("muon", [None, 1e-3])
def test_the_rate_is_that_of_the_update_and_skipped_updates_do_not_count(muon):
  optimizer = Optimizer(rate=0.5, warmup=4, muon=muon)
  build = optimizer.build()
  params = {"w": jnp.ones((2, 2))}
  state, rates = build.init(params), []
  for scale in (1.0, jnp.nan, 1.0, 1.0):
    rates.append(float(optimizer.current_rate(state)))
    grads = {"w": scale * jnp.ones((2, 2))}
    _, state = build.update(grads, state, params)
  np.testing.assert_allclose(rates, [0, 0.125, 0.125, 0.25])
  assert len(optax.tree.get_all_with_path(state.inner, "count")) > 0


def test_a_missing_package_and_an_unknown_name_are_one_line(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(sys, "path", [])
  monkeypatch.setattr(sys, "meta_path", [])
  for name in ("wandb", "trackio", "mlflow"):
    monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(ConfigError, match=rf'install "ldm_jax\[{name}\]"'):
      check_trackers((TensorBoard(), tracker_of(name)))
  monkeypatch.undo()
  with pytest.raises(ConfigError, match="tracker 'wand' is none of"):
    train("glyphs_class", str(tmp_path / "run"), trackers=["wand"])
  assert not (tmp_path / "run").exists()


def test_trackers_are_read_back_from_a_config(tmp_path):
  made = tuple(kind() for kind in BY_NAME.values())
  base = dataclasses.replace(config.load("glyphs_class"), trackers=made)
  Run(str(tmp_path), base, {}).write()
  assert Run.open(str(tmp_path)).experiment.trackers == made


def test_wandb_continues_a_run_under_its_id(tmp_path, monkeypatch):
  pytest.importorskip("wandb", reason="the package wandb is not installed")
  for name, value in (("MODE", "offline"), ("SILENT", "true")):
    monkeypatch.setenv(f"WANDB_{name}", value)
  folder = written_run(tmp_path)
  log_twice(folder, Wandb())
  run_id = json.loads((tmp_path / "trackers.json").read_text())["wandb"]
  files = glob.glob(f"{folder}/wandb/offline-run-*/run-*.wandb")
  assert files and all(f.endswith(f"run-{run_id}.wandb") for f in files)
  content = b"".join(pathlib.Path(file).read_bytes() for file in files)
  for key in (b"train/loss", b"val/psnr", b"task.optimizer.rate", b"samples"):
    assert key in content, key


def test_trackio_continues_a_run_under_its_name(tmp_path, monkeypatch, capsys):
  monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
  pytest.importorskip("trackio", reason="the package trackio is not installed")
  folder = written_run(tmp_path / "run")
  log_twice(folder, Trackio())
  assert capsys.readouterr().out == ""
  (file,) = glob.glob(f"{tmp_path}/trackio/*.db")
  rows = sqlite3.connect(file).execute(
    "select run_name, step, metrics from metrics"
  )
  names, steps, values = zip(*rows, strict=True)
  assert len(set(names)) == 1 and names[0].startswith("run-")
  assert set(steps) == {1, 2} and "train/loss" in "".join(map(str, values))


def test_mlflow_continues_a_run_under_its_id(tmp_path, monkeypatch):
  mlflow = pytest.importorskip(
    "mlflow", reason="the package mlflow is not installed"
  )
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/m.db")
  folder = written_run(tmp_path / "run")
  log_twice(folder, MLflow())
  changed = dataclasses.replace(config.load("glyphs_class"), steps=7)
  Run(folder, changed, {}).write()
  writer = MetricWriter(folder, 2, trackers=(MLflow(),))
  writer.close()
  client = mlflow.MlflowClient()
  experiment = client.get_experiment_by_name("ldm_jax")
  (run,) = client.search_runs([experiment.experiment_id])
  history = client.get_metric_history(run.info.run_id, "train/loss")
  assert [(m.step, m.value) for m in history] == [
    (1, 0.25), (2, 0.25), (2, 1.25),
  ]  # fmt: skip
  assert run.data.params["task.model.conditioners.0.classes"] == "48"
  assert run.data.tags["steps/2"] == "7" and run.info.status == "FINISHED"
