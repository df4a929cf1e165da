"""Following runs: what their files hold, and the page's tables and plots."""

import json
import math
import os

import numpy as np
import pytest

from ldm_jax.errors import ConfigError
from ldm_jax.runtime import image_files
from ldm_jax.runtime.checkpointing.checksums import checksum
from ldm_jax.runtime.monitoring.metric_writer import MetricWriter
from ldm_jax.serving.watch import WatchRequest, build_watch_page
from ldm_jax.serving.watch.curves import loss_figure, metric_figure
from ldm_jax.serving.watch.run_files import (
  config_differences,
  flattened,
  read_run,
  state_of_files,
  thinned,
)
from ldm_jax.serving.watch.run_tables import (
  checkpoint_table,
  config_table,
  duration,
  overview_table,
  preview_images,
  table,
)


@pytest.fixture
def make_run(tmp_path):
  """A function that writes the files of a run, as training does."""

  def make(name, steps=100, rate=1e-4):
    folder = tmp_path / name
    folder.mkdir()
    task = {"class": "Task", "rate": rate, "betas": [0.9, 0.99]}
    experiment = {"class": "Experiment", "steps": steps, "task": task}
    config = {"format": 2, "experiment": experiment, "batch": {}}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)

  return make


def write_metrics(folder, lines):
  writer = MetricWriter(folder, trackers=())
  for step, values in lines:
    writer.write(step, values)
  writer.close()


def test_curves_are_what_training_wrote(make_run):
  folder = make_run("a")
  write_metrics(
    folder,
    [
      (10, {"loss": 3.0, "learning_rate": 1e-4}),
      (20, {"loss": math.nan}),
      (20, {"validation_loss": 2.5}),
      (30, {"loss": 1.0}),
    ],
  )
  run = read_run(folder)
  steps, values = run.curve("loss")
  assert steps == [10, 20, 30] and values[::2] == [3.0, 1.0]
  assert math.isnan(values[1])
  assert run.curve("validation_loss") == ([20], [2.5])
  assert run.validation_loss == "validation_loss"
  assert run.names == ["loss", "learning_rate", "validation_loss"]
  assert run.step == 30 and run.steps == 100 and run.latest("loss") == 1.0
  assert run.curve("mfu") == ([], []) and run.latest("mfu") is None


def test_a_run_that_has_just_begun_can_be_read(make_run):
  run = read_run(make_run("a"))
  assert run.step == 0 and run.seconds_left is None and not run.checkpoints
  assert "a" in overview_table([run]) and not loss_figure([run]).data
  assert "No checkpoint yet" in checkpoint_table([run])
  assert "No preview yet" in preview_images([run], "samples", 5)


def test_a_line_that_is_being_written_is_left_for_later(make_run):
  folder = make_run("a")
  write_metrics(folder, [(1, {"loss": 2.0})])
  with open(os.path.join(folder, "metrics.jsonl"), "a") as file:
    file.write('{"step": 2, "sec')
  assert read_run(folder).step == 1


def test_what_is_no_run_is_refused(tmp_path):
  with pytest.raises(ConfigError, match=r"no run folder: there is no .*config"):
    read_run(str(tmp_path / "nowhere"))
  (tmp_path / "config.json").write_text("{}")
  with pytest.raises(ConfigError, match="not a run's"):
    read_run(str(tmp_path))


def test_previews_are_found_by_name_and_step(make_run):
  folder = make_run("a")
  for name in ("samples_0000200", "samples_0000100", "reconstructions_0000100"):
    path = os.path.join(folder, "previews", f"{name}.png")
    image_files.write_png(path, np.zeros((4, 4, 3), np.uint8))
  run = read_run(folder)
  assert list(run.previews["samples"]) == [100, 200]
  assert "samples, step 100" in preview_images([run], "samples", 199)
  assert "samples, step 200" in preview_images([run], "samples", 200)
  assert "No preview" in preview_images([run], "samples", 99)


def test_digests_are_those_of_the_saved_state(make_run):
  """As `ldm-jax verify` prints them, from the small file of digests alone."""
  from ldm_jax.runtime.checkpointing.checksums import checksums

  folder, tree = make_run("a"), {"w": np.arange(6.0), "step": np.int32(5)}
  path = os.path.join(folder, "checkpoints", "5", "digests")
  os.makedirs(path)
  os.makedirs(os.path.join(folder, "checkpoints", "10"))
  with open(os.path.join(path, "metadata"), "w") as file:
    json.dump(checksums(tree).leaves, file)
  first, second = read_run(folder).checkpoints
  assert (first.step, first.digest) == (5, checksum(tree))
  assert (second.step, second.digest) == (10, None)
  assert "being written" in checkpoint_table([read_run(folder)])


def test_differences_of_configs_name_what_differs_alone(make_run):
  runs = [read_run(make_run("a")), read_run(make_run("b", rate=2e-4))]
  assert config_differences(runs) == [("task.rate", (1e-4, 2e-4))]
  assert "betas" not in config_table(runs)
  assert "do not differ" in config_table(runs[:1] * 2)
  assert "task.betas" in config_table(runs[:1])


def test_flattening_keeps_every_leaf():
  tree = {"a": {"b": 1, "c": [1, 2]}, "d": [{"e": None}, {"e": 3}], "f": {}}
  expected = {"a.b": 1, "a.c": [1, 2], "d.0.e": None, "d.1.e": 3}
  assert flattened(tree) == expected


@pytest.mark.parametrize("count", [1, 7, 100, 101])
def test_thinning_keeps_the_mean_and_the_last_step(count):
  steps, values = list(range(count)), [float(i % 7) for i in range(count)]
  found_steps, found = thinned(steps, values, 10)
  assert len(found_steps) == len(found) <= 10 and found_steps[-1] == count - 1
  if count % len(found) == 0:
    assert sum(found) / len(found) == pytest.approx(sum(values) / count)


def test_the_state_changes_with_every_file_that_is_shown(make_run):
  folder = make_run("a")
  states = [state_of_files([folder])]
  write_metrics(folder, [(1, {"loss": 2.0})])
  states.append(state_of_files([folder]))
  os.makedirs(os.path.join(folder, "checkpoints", "5"))
  states.append(state_of_files([folder]))
  assert len(set(states)) == 3 and state_of_files([folder]) == states[-1]


def test_figures_have_a_line_for_every_curve(make_run):
  runs = []
  for name in "ab":
    folder = make_run(name)
    lines = [(1, {"loss": 2.0, "mfu": 0.5}), (1, {"validation_loss": 2.0})]
    write_metrics(folder, lines)
    runs.append(read_run(folder))
  names = [line.name for line in loss_figure(runs).data]
  assert names == [
    *("a: train", "a: validation loss"),
    *("b: train", "b: validation loss"),
  ]
  assert [line.name for line in metric_figure(runs, "mfu").data] == ["a", "b"]


def test_text_of_files_is_escaped():
  assert "<b>" not in table(["x"], [["<b>"]])


@pytest.mark.parametrize(
  "seconds, text",
  [(5, "5 s"), (65, "1 min 5 s"), (3700, "1 h 1 min"), (None, None)],
)
def test_durations(seconds, text):
  assert duration(seconds) == text


def test_the_page_is_built_for_several_runs(make_run):
  folders = [make_run("a"), make_run("b")]
  before = {p: os.stat(p).st_mtime_ns for p in folders}
  blocks = build_watch_page(folders)
  labels = {getattr(part, "label", None) for part in blocks.blocks.values()}
  assert {"Checkpoints", "Skipped steps", "Differences of configs"} <= labels
  assert before == {p: os.stat(p).st_mtime_ns for p in folders}


@pytest.mark.parametrize(
  "fields, message",
  [
    ({"runs": ()}, "one run or more"),
    ({"runs": ("a",), "port": 70000}, "port must be"),
    ({"runs": ("a",), "every": 0.1}, "every must be"),
  ],
)
def test_requests_are_checked(fields, message):
  with pytest.raises(ConfigError, match=message):
    WatchRequest(**fields)
