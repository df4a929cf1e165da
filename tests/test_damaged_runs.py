"""Damaged checkpoints of finished runs, and folders that two commands write."""

import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from untrained import FOLDER, untrained

from ldm_jax.cli import evaluate, report
from ldm_jax.cli.exit_codes import CommandError
from ldm_jax.evaluation.generate_samples import SampleWriter
from ldm_jax.evaluation.request import EvaluationRequest
from ldm_jax.runtime.devices.sharding import MeshShape
from ldm_jax.sampling.export import exported_runner
from ldm_jax.training import trainer
from ldm_jax.training.train import train

HOLDER = """
import sys
from ldm_jax.files.file_lock import lock_folder
with lock_folder(sys.argv[1]):
  print("held", flush=True)
  sys.stdin.readline()
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """An autoencoder's config, and its run with the checkpoints 1 and 2 of 2."""
  folder = tmp_path_factory.mktemp("finished")
  rng = np.random.default_rng(0)
  (folder / "images" / "a").mkdir(parents=True)
  for i in range(10):
    pixels = rng.integers(0, 255, (16, 16, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "images" / "a" / f"{i}.png")
  images = str(folder / "images")
  config = folder / "config.py"
  config.write_text(FOLDER.format(source=images, good=images))
  untrained(config, folder / "run", [])
  steps = folder / "run" / "checkpoints"
  shutil.copytree(steps / "1", steps / "2")
  return config, folder / "run"


def copied(finished, folder, damaged=()):
  """A copy of the run, in which these checkpoints are damaged."""
  shutil.copytree(finished[1], folder)
  for step in damaged:
    shutil.rmtree(folder / "checkpoints" / str(step) / "digests")
  return folder


def test_a_finished_run_is_resumed_where_its_newest_checkpoint_is_damaged(
  finished, tmp_path, caplog, monkeypatch
):
  begun = []

  def session(self, state, begin, stream, interruption):
    begun.append(begin)
    return trainer.TrainingOutcome(begin)

  monkeypatch.setattr(trainer.TrainingSession, "run", session)
  caplog.set_level("INFO")
  intact = copied(finished, tmp_path / "intact")
  assert train(str(finished[0]), str(intact)).step == 2
  assert not begun and "has already run its 2 steps" in caplog.text
  caplog.clear()
  damaged = copied(finished, tmp_path / "damaged", [2])
  assert train(str(finished[0]), str(damaged)).step == 1
  assert begun == [1] and "already run" not in caplog.text
  assert "; using step 1" in caplog.text
  assert (damaged / "damaged" / "2").exists()


def test_the_step_that_was_read_is_written(finished, tmp_path):
  for damaged, step in ((), 2), ([2], 1):
    out = tmp_path / f"out{step}"
    run = copied(finished, tmp_path / f"run{step}", damaged)
    request = EvaluationRequest(samples=str(run), out=str(out), num=1)
    writer = SampleWriter(request, MeshShape().build())
    writer.begin()
    assert writer.settings["step"] == step
    (stored,) = [json.loads(path.read_text()) for path in out.iterdir()]
    assert stored["step"] == step


def test_a_folder_that_another_process_writes_is_refused(finished, tmp_path):
  out = tmp_path / "out"
  out.mkdir()
  with subprocess.Popen(
    [sys.executable, "-c", HOLDER, str(out)],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
    cwd=pathlib.Path(__file__).parent.parent,
  ) as holder:
    holder.stdout.readline()
    before = sorted(path.name for path in out.iterdir())
    for main, flags in (
      (evaluate.main, [str(finished[1])]),
      (report.main, [f"--model={finished[1]}"]),
    ):
      with pytest.raises(CommandError) as stop:
        main([*flags, f"--out={out}", "--num=1"])
      assert stop.value.code == 2
      assert f"process {holder.pid}" in str(stop.value)
    assert sorted(path.name for path in out.iterdir()) == before
    holder.stdin.write("end\n")


def test_an_exported_sampler_overwrites_nothing(tmp_path):
  others = ["00001.png", "00003.png", "00004.png"]
  for name in others[:2]:
    (tmp_path / name).write_bytes(b"another's")
  paths = exported_runner.save(tmp_path, np.zeros((3, 8, 8, 3), np.uint8))
  names = [next(paths).name]
  # Of a program that began at the same time.
  (tmp_path / others[2]).write_bytes(b"another's")
  names += [path.name for path in paths]
  assert names == ["00002.png", "00005.png", "00006.png"]
  for name in others:
    assert (tmp_path / name).read_bytes() == b"another's"
  for name in names:
    assert Image.open(tmp_path / name).size == (8, 8)
