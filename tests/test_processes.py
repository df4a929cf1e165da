"""Several processes compute what one does, and end together."""

import json
import math
import os
import pathlib
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from test_training import CONFIGS, NO_PREVIEWS, ONE, TWO, run

from ldm_jax.errors import ConfigError
from ldm_jax.run import Run
from ldm_jax.runtime.checkpointing.checkpoint import Checkpoints
from ldm_jax.runtime.checkpointing.checksums import checksum
from ldm_jax.runtime.devices import processes
from ldm_jax.runtime.devices.sharding import MeshShape
from ldm_jax.runtime.monitoring import metric_writer

ROOT = pathlib.Path(__file__).parent.parent


def test_jax_detects_the_cluster_of_a_tpu(monkeypatch):
  """On TPU VMs only the metadata server shows whether there is one."""
  calls = []

  def initialize(**options):
    calls.append(options)
    if len(calls) == 2:
      raise ValueError("coordinator_address should be defined.")

  monkeypatch.setattr(jax.distributed, "initialize", initialize)
  processes.initialize({})
  assert not calls
  monkeypatch.setattr(processes.os.path, "exists", lambda path: True)
  monkeypatch.setattr(processes.importlib.util, "find_spec", lambda name: name)
  processes.initialize({})
  processes.initialize({})  # a single host
  processes.initialize({"JAX_PLATFORMS": "cpu"})
  assert len(calls) == 2 and "coordinator_address" not in calls[0]


@pytest.mark.parametrize(
  "more, message",
  [
    ({}, "JAX_NUM_PROCESSES must be a whole number, got ''"),
    ({"JAX_NUM_PROCESSES": "2"}, "JAX_PROCESS_ID must be a whole number"),
    (
      {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"},
      "JAX_PROCESS_ID=2 must be 0 to 1",
    ),
  ],
)
def test_invalid_process_numbers_are_refused(more, message):
  with pytest.raises(ConfigError, match=message):
    processes.initialize({"JAX_COORDINATOR_ADDRESS": "localhost:1", **more})


def start(arguments, count=2, devices=4):
  """Starts several processes; `arguments` gives those of each."""
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    address = f"localhost:{probe.getsockname()[1]}"
  env = {
    **os.environ,
    "JAX_COORDINATOR_ADDRESS": address,
    "JAX_NUM_PROCESSES": str(count),
    "JAX_NUM_CPU_DEVICES": str(devices),
  }
  return [
    subprocess.Popen(
      [sys.executable, *arguments(i)],
      env={**env, "JAX_PROCESS_ID": str(i)},
      cwd=ROOT,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for i in range(count)
  ]


def of_gloo(line):
  """Whether a line is from Gloo, the transport of CPUs.

  Its threads write "... is connected to 7 peer ranks. Expected number of
  connected peer ranks is : 7" in pieces, into each other's lines: the last
  number may stand alone.
  """
  pieces = ("[Gloo]", "connected to", "peer ranks")
  return line.strip(" .:0123456789") == "" or any(p in line for p in pieces)


def run_together(command):
  """The lines of stdout of each of two processes; both must succeed."""
  running, outputs = start(lambda i: command), []
  for process in running:
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err[-3000:]
    outputs.append([line for line in out.splitlines() if not of_gloo(line)])
  return outputs


def losses(folder):
  return [
    (line["step"], line["loss"])
    for line in metric_writer.read_metrics(str(folder))
    if "loss" in line
  ]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
  """Each stage trained by one process of 8 devices, and by two of 4."""
  root = tmp_path_factory.mktemp("pairs")
  mesh = ["--config.mesh.data=2", "--config.mesh.fsdp=2"]
  mesh.append("--config.mesh.tensor=2")
  for name, config, flags in (
    ("one", "glyphs_autoencoder.py", [*ONE, NO_PREVIEWS, *mesh]),
    (
      "two",
      "glyphs_text.py",
      [*TWO, NO_PREVIEWS, *mesh, f"--config.first_stage={root / 'one_alone'}"],
    ),
  ):
    assert run(config, root / f"{name}_alone", 3, flags, every=3) == 0
    outputs = run_together(
      [
        "train.py",
        f"--config={CONFIGS / config}",
        f"--workdir={root / name}_both",
        "--config.steps=3",
        "--config.checkpoints.every=3",
        *flags,
      ]
    )
    assert json.loads(outputs[0][-1])["step"] == 3 and not outputs[1]
  return root


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["one", "two"])
def test_two_processes_train_as_one(pairs, stage):
  alone, both = (losses(pairs / f"{stage}_{n}") for n in ("alone", "both"))
  assert [step for step, _ in alone] == [1, 2, 3]
  np.testing.assert_allclose(both, alone, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["one", "two"])
def test_one_process_restores_the_state_of_two_on_any_mesh(pairs, stage):
  folder = str(pairs / f"{stage}_both")
  opened = Run.open(folder)
  task = opened.experiment.task
  shapes = jax.eval_shape(
    task.init, jax.random.key(0), opened.batch, task.frozen_shapes(opened.batch)
  )
  found = []
  for mesh in ((1,), (2,), (1, 2), (8,), (1, 8), (2, 2, 2)):
    devices = jax.devices()[: math.prod(mesh)]
    shardings = MeshShape(*mesh).build(devices).tree_shardings(shapes)
    checkpoints = Checkpoints(os.path.join(folder, "checkpoints"))
    found.append(checksum(checkpoints.restore(3, shapes, shardings)))
    checkpoints.close()
  assert len(set(found)) == 1


@pytest.mark.slow
def test_two_processes_generate_the_images_of_one(pairs, tmp_path):
  command = ["sample.py", f"--model={pairs / 'two_alone'}", "--num=3"]
  command += ["--steps=3", "--batch=8", "--prompt=a red circle"]
  outputs = run_together([*command, f"--out={tmp_path / 'both'}"])
  assert len(outputs[0]) == 4 and not outputs[1]
  expected = ["00000.png", "00001.png", "00002.png", "grid.png"]
  assert sorted(files(tmp_path / "both")) == expected
  alone = [sys.executable, *command, f"--out={tmp_path / 'alone'}"]
  env = {**os.environ, "JAX_NUM_CPU_DEVICES": "8"}
  subprocess.run(alone, cwd=ROOT, env=env, check=True, capture_output=True)
  from PIL import Image

  for name in ("00000.png", "00001.png", "00002.png"):
    one, two = (
      np.asarray(Image.open(tmp_path / side / name), int)
      for side in ("alone", "both")
    )
    assert np.abs(one - two).max() <= 1


def files(folder):
  """All files by their path; locks and events are not results."""
  return {
    str(path.relative_to(folder)): path.read_bytes()
    for path in folder.rglob("*")
    if path.is_file() and not path.name.startswith(".")
  }


def both_and_alone(module, arguments, tmp_path):
  """The files that two processes write, and those of one; lines of stdout."""
  command = ["-m", f"ldm_jax.cli.{module}", *arguments]
  outputs = run_together([*command, f"--out={tmp_path / 'both'}"])
  alone = [sys.executable, *command, f"--out={tmp_path / 'alone'}"]
  env = {**os.environ, "JAX_NUM_CPU_DEVICES": "8"}
  subprocess.run(alone, cwd=ROOT, env=env, check=True, capture_output=True)
  return files(tmp_path / "both"), files(tmp_path / "alone"), outputs


@pytest.mark.slow
def test_two_processes_evaluate_as_one(pairs, tmp_path):
  arguments = [str(pairs / "two_alone"), "--num=16", "--steps=2"]
  arguments += ["--train=16", "--allow_small"]
  both, alone, outputs = both_and_alone("evaluate", arguments, tmp_path)
  assert set(both) == set(alone) and outputs[0] and not outputs[1]
  one, two = (json.loads(each["evaluation.json"]) for each in (alone, both))
  assert set(one) == set(two)
  for name, value in one.items():
    is_number = isinstance(value, float)
    expected = pytest.approx(value, rel=1e-2) if is_number else value
    assert two[name] == expected, name


@pytest.mark.slow
def test_two_processes_prepare_latents_as_one(pairs, tmp_path):
  arguments = [f"--config={CONFIGS / 'glyphs_text.py'}", "--batch=8"]
  arguments.append("--config.data.source.size=40")
  arguments.append(f"--first_stage={pairs / 'one_alone'}")
  both, alone, outputs = both_and_alone("prepare", arguments, tmp_path)
  assert set(both) == set(alone) and len(outputs[0]) == 1 and not outputs[1]
  for name, data in alone.items():
    if "moments" in name:
      one, two = (np.load(tmp_path / n / name) for n in ("alone", "both"))
      np.testing.assert_allclose(two, one, atol=1e-2)
    else:
      assert both[name] == data, name


@pytest.mark.slow
def test_two_processes_pack_images_as_one(tmp_path):
  """Three files of records, so that each process has some."""
  from PIL import Image

  (tmp_path / "photos").mkdir()
  for i in range(2003):
    image = np.full((16, 20, 3), i % 256, np.uint8)
    Image.fromarray(image).save(tmp_path / "photos" / f"{i:04d}.png")
  arguments = [f"--config={CONFIGS / 'ldm' / 'ffhq256.py'}", "--size=16"]
  arguments.append(f"--config.data.source.path={tmp_path / 'photos'}")
  arguments.append("--format=png")
  both, alone, outputs = both_and_alone("prepare", arguments, tmp_path)
  assert both == alone and len(alone) == 4
  assert len(outputs[0]) == 1 and not outputs[1]


@pytest.mark.slow
def test_an_error_of_one_process_is_printed_and_ends_both(tmp_path):
  command = ["train.py", f"--config={CONFIGS / 'glyphs_autoencoder.py'}"]
  command += [f"--workdir={tmp_path / 'run'}", *ONE]
  wrong = "--config.task.optimizer.rate=-1"
  begun = time.monotonic()
  running = start(lambda i: [*command, wrong] if i else command)
  errors = [process.communicate(timeout=400)[1] for process in running]
  assert running[1].returncode == 2
  assert "rate: needs above 0, got" in errors[1]
  assert running[0].returncode not in (0, None)
  assert time.monotonic() - begun < 5 * processes.HEARTBEAT_SECONDS
