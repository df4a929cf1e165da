"""Training by mpirun of Open MPI and MPICH: two processes on one host."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
from test_training import ONE

ROOT = pathlib.Path(__file__).parent.parent
OPEN_MPI = ("mpirun.openmpi", "--allow-run-as-root", "--oversubscribe")


def losses(folder, launcher, devices):
  """Of three steps of stage one, `devices` for each process."""
  config = ROOT / "configs" / "glyphs_autoencoder.py"
  done = subprocess.run(
    [
      *(*launcher, sys.executable, "train.py", f"--config={config}", *ONE),
      *(f"--workdir={folder}", "--config.steps=3"),
      *("--config.reports.previews_every=0", "--config.checkpoints.every=3"),
    ],
    capture_output=True,
    text=True,
    timeout=400,
    cwd=ROOT,
    env=os.environ
    | {
      "JAX_NUM_CPU_DEVICES": str(devices),
      "XLA_FLAGS": "--xla_backend_optimization_level=0",
    },
  )
  assert done.returncode == 0, done.stderr
  lines = (folder / "metrics.jsonl").read_text().splitlines()
  return [line["loss"] for line in map(json.loads, lines) if "loss" in line]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
  return losses(tmp_path_factory.mktemp("alone") / "run", (), 4)


@pytest.mark.slow
@pytest.mark.parametrize(
  "launcher", [OPEN_MPI, ("mpirun.mpich",)], ids=["openmpi", "mpich"]
)
def test_two_processes_of_mpirun_train_as_one(tmp_path, alone, launcher):
  """Without mpi4py; the mesh of four devices is the same."""
  if shutil.which(launcher[0]) is None:
    package = "openmpi-bin" if launcher is OPEN_MPI else "mpich"
    pytest.skip(f"no {launcher[0]}; apt-get install {package}")
  found = losses(tmp_path / "run", (*launcher, "-np", "2"), 2)
  assert found == pytest.approx(alone, rel=1e-4)
