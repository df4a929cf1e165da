"""Training under Slurm for real: two nodes on loopback, every way to end."""

import json
import os
import pathlib
import shutil
import sys
import time

import pytest
from slurm_cluster import Cluster, missing, wait_for
from test_mpi import OPEN_MPI
from test_training import DATA

ROOT = pathlib.Path(__file__).parent.parent
STEPS = 20
TRAIN = [
  *(sys.executable, str(ROOT / "train.py")),
  f"--config={ROOT / 'configs' / 'glyphs_autoencoder.py'}",
  "--config.task.autoencoder.trunk.channels=4",
  "--config.task.autoencoder.trunk.multipliers=1,",
  "--config.task.autoencoder.trunk.groups=4",
  *DATA,
  "--config.reports.previews_every=0",
  "--config.checkpoints.every=1000",
]
ENVIRONMENT = {
  "PYTHONPATH": str(ROOT),
  "JAX_NUM_CPU_DEVICES": "1",
  "XLA_FLAGS": "--xla_backend_optimization_level=0",
}
TWO = ("--nodes=2", "--ntasks-per-node=1")

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(
    bool(missing()), reason=f"apt-get install {missing()}, for a cluster"
  ),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
  with Cluster(tmp_path_factory.mktemp("slurm"), ENVIRONMENT) as found:
    yield found
  assert not found.processes()


def train(folder, steps=STEPS):
  return [*TRAIN, f"--workdir={folder}", f"--config.steps={steps}"]


def losses(folder):
  path = folder / "metrics.jsonl"
  lines = path.read_text().splitlines(True) if path.exists() else []
  found = [json.loads(line) for line in lines if line.endswith("\n")]
  return {line["step"]: line["loss"] for line in found if "loss" in line}


def saved(folder):
  path = folder / "checkpoints"
  names = os.listdir(path) if path.exists() else []
  return max((int(name) for name in names if name.isdigit()), default=0)


def submit(cluster, folder, *arguments, steps=STEPS, launcher=("srun",)):
  """A job of the two nodes that trains in `folder`; its output is DIR.out."""
  command = " ".join([*launcher, *train(folder, steps)])
  return cluster.submit(
    *(*TWO, "--open-mode=append", f"--output={folder}.out", *arguments),
    f"--wrap={command}",
  )


def step_reached(folder, step):
  wait_for(lambda: max(losses(folder), default=0) >= step, 120, f"step {step}")


def output(folder):
  return pathlib.Path(f"{folder}.out").read_text()


def finish(cluster, folder):
  """Submits the same command again; losses of all its steps."""
  found = cluster.ended(submit(cluster, folder))
  assert found["JobState"] == "COMPLETED", output(folder)
  return losses(folder)


@pytest.fixture(scope="module")
def uninterrupted(cluster, tmp_path_factory):
  """Losses of two tasks of srun."""
  found = finish(cluster, tmp_path_factory.mktemp("base") / "run")
  assert list(found) == list(range(1, STEPS + 1))
  return found


@pytest.fixture(scope="module")
def alone(cluster, tmp_path_factory):
  """Losses of one process with as many devices, of the first steps."""
  folder = tmp_path_factory.mktemp("alone") / "run"
  more = {"env": cluster.environment | {"JAX_NUM_CPU_DEVICES": "2"}}
  done = cluster.call(*train(folder, 5), **more)
  assert done.returncode == 0, done.stderr
  return losses(folder)


def test_two_tasks_train_as_one_process(uninterrupted, alone):
  found = {step: uninterrupted[step] for step in alone}
  assert found == pytest.approx(alone, rel=1e-4)


def stop_until(cluster, job, end):
  """No further steps until Slurm, which looks every 30 s, sends a signal.

  It continues the stopped processes.
  """
  cluster.call("scancel", "--signal=STOP", job)
  cluster.call("scontrol", "update", f"JobId={job}", f"EndTime={end}")


def resume_at_once(cluster, job):
  """The job waits for two minutes otherwise, after it was requeued.

  Within a second, slurmd takes it for the one that it has just ended.
  """
  is_requeued = lambda: cluster.job(job)["JobState"] == "PENDING"
  wait_for(is_requeued, 90, f"requeue of job {job}")
  time.sleep(3)
  cluster.call("scontrol", "update", f"JobId={job}", "StartTime=now")


def test_a_signal_scancel_and_the_time_limit_save(
  cluster, uninterrupted, tmp_path
):
  """One run after another in the same folder, each ended in its own way."""
  folder, before = tmp_path / "run", 0
  ends = {
    "FAILED": lambda job: cluster.call("scancel", "--signal=USR1", job),
    "CANCELLED": lambda job: cluster.call("scancel", job),
    "TIMEOUT": lambda job: stop_until(cluster, job, "now"),
  }
  for state, end in ends.items():
    job = submit(cluster, folder)
    step_reached(folder, before + 2)
    end(job)
    assert cluster.ended(job)["JobState"] == state, output(folder)
    assert before < saved(folder) < STEPS, output(folder)
    before = saved(folder)
  assert "SIGUSR1: saved step" in output(folder)
  assert finish(cluster, folder) == uninterrupted


def test_the_batch_file_requeues_itself_before_its_time_is_over(
  cluster, uninterrupted, tmp_path
):
  folder, command = tmp_path / "run", tmp_path / "ldm-jax"
  entry = "from ldm_jax.cli.main import entry; entry()"
  command.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{entry}" "$@"\n')
  command.chmod(0o755)
  path = f"{tmp_path}:{cluster.environment['PATH']}"
  name, *flags = (flag for flag in train(folder) if flag.startswith("--"))
  arguments = [
    *("--nodes=2", f"--export=ALL,PATH={path}", f"--output={folder}.out"),
    *("--time=60", "--signal=USR1@60", str(ROOT / "launch" / "slurm.sbatch")),
    *(name.partition("=")[2], str(folder), *flags),
  ]
  checked = cluster.call("sbatch", "--test-only", *arguments)
  assert checked.returncode == 0, checked.stderr
  job = cluster.submit(*arguments)
  step_reached(folder, 1)
  stop_until(cluster, job, "now+60")
  resume_at_once(cluster, job)
  assert 0 < saved(folder) < STEPS, output(folder)
  found = cluster.ended(job)
  assert found["JobState"] == "COMPLETED", output(folder)
  assert found["Restarts"] == "1" and losses(folder) == uninterrupted


def test_a_requeued_job_resumes_and_a_suspended_one_does_not_hang(
  cluster, uninterrupted, tmp_path
):
  folder = tmp_path / "run"
  job = submit(cluster, folder, "--requeue")
  step_reached(folder, 2)
  cluster.call("scontrol", "requeue", job)
  resume_at_once(cluster, job)
  first = saved(folder)
  assert 0 < first < STEPS, output(folder)
  step_reached(folder, first + 1)
  cluster.call("scontrol", "suspend", job)
  time.sleep(8)
  assert cluster.job(job)["JobState"] == "SUSPENDED"
  assert max(losses(folder)) < STEPS
  cluster.call("scontrol", "resume", job)
  found = cluster.ended(job)
  assert found["JobState"] == "COMPLETED", output(folder)
  assert found["Restarts"] == "1"
  assert losses(folder) == uninterrupted


def test_a_batch_script_without_srun_is_one_line(cluster, tmp_path):
  folder = tmp_path / "run"
  job = submit(cluster, folder, launcher=())
  assert cluster.ended(job)["ExitCode"] == "2:0"
  assert "write srun before the command" in output(folder)
  assert "Traceback" not in output(folder)


@pytest.mark.parametrize(
  "launcher", [OPEN_MPI, ("mpirun.mpich",)], ids=["openmpi", "mpich"]
)
def test_mpirun_inside_a_job(cluster, alone, tmp_path, launcher):
  """Its processes are one on each node."""
  if shutil.which(launcher[0]) is None:
    pytest.skip(f"no {launcher[0]}")
  folder = tmp_path / "run"
  launcher = (*launcher, "-np", "2")
  job = submit(cluster, folder, steps=5, launcher=launcher)
  assert cluster.ended(job)["JobState"] == "COMPLETED", output(folder)
  assert losses(folder) == pytest.approx(alone, rel=1e-4)
