"""Fault injection: signals, kills, NaN and dead processes, in real processes.

The number of repetitions is a fraction of the full one; see full.py.
"""

import contextlib
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from faulty import descend, make_trainer
from full import FRACTION, repeated
from test_processes import start
from test_training import CONFIGS, NO_PREVIEWS, ONE, TWO

from ldm_jax.errors import NonFinite
from ldm_jax.runtime.checkpointing import read_checkpoints
from ldm_jax.runtime.checkpointing.checkpoint import INCOMPLETE, Checkpoints
from ldm_jax.runtime.checkpointing.checksums import combined_checksum
from ldm_jax.runtime.monitoring import metric_writer

ROOT = pathlib.Path(__file__).parent.parent
FAULTY = str(ROOT / "tests" / "faulty.py")


def newest_checksum(folder):
  """(step, checksum) of the newest state, which must be intact."""
  *_, last = read_checkpoints.verify_checkpoints(str(folder / "checkpoints"))
  step, error, leaves = last
  assert error is None
  return step, combined_checksum(leaves)


def losses(folder):
  lines = metric_writer.read_metrics(str(folder))
  return [(line["step"], line["loss"]) for line in lines if "loss" in line]


def begin(folder, steps, every=5, rest=0.05, **env):
  """Starts a small run as a process."""
  return subprocess.Popen(
    [sys.executable, FAULTY, str(folder), str(steps), str(every), str(rest)],
    env={**os.environ, "JAX_NUM_CPU_DEVICES": "1", **env},
    stderr=subprocess.PIPE,
    text=True,
  )


def wait_for(folder, step, process, seconds=60):
  """Returns once the run has reported a step."""
  until = time.monotonic() + seconds
  while time.monotonic() < until and process.poll() is None:
    found = losses(folder) if folder.exists() else []
    if found and found[-1][0] >= step:
      return
    time.sleep(0.02)
  raise AssertionError(f"no step {step}: {process.communicate()[1]}")


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
  """A small run of 30 steps without faults."""
  folder = tmp_path_factory.mktemp("straight") / "run"
  process = begin(folder, 30, rest=0.0)
  assert process.wait(120) == 0, process.communicate()[1]
  return folder


@pytest.mark.parametrize(
  "number, code",
  [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 138)],
)
def test_a_signal_loses_no_step(straight, tmp_path, number, code):
  run = tmp_path / "run"
  process = begin(run, 30)
  wait_for(run, 7, process)
  sent = time.monotonic()
  process.send_signal(number)
  assert process.wait(30) == code
  assert time.monotonic() - sent < 5
  assert f"{number.name}: saved step" in process.communicate()[1]
  step, _ = newest_checksum(run)
  assert 7 <= step < 30 and step == losses(run)[-1][0]
  again = begin(run, 30, rest=0.0)
  assert again.wait(60) == 0
  assert f"from step {step}" in again.communicate()[1]
  assert newest_checksum(run) == newest_checksum(straight)
  assert losses(run) == losses(straight)


def test_a_second_ctrl_c_ends_at_once_and_loses_nothing_saved(
  straight, tmp_path
):
  run = tmp_path / "run"
  process = begin(run, 30, every=50, rest=0.3, SLOW="60")
  wait_for(run, 5, process)
  process.send_signal(signal.SIGINT)
  time.sleep(1.5)  # by then it waits for its save
  process.send_signal(signal.SIGINT)
  sent = time.monotonic()
  assert process.wait(30) == 130
  assert time.monotonic() - sent < 2
  err = process.communicate()[1]
  assert "interrupted" in err and "saved step" not in err  # it did not wait
  again = begin(run, 30, every=2, rest=0.0)
  assert again.wait(60) == 0, again.communicate()[1]
  assert newest_checksum(run)[1] == newest_checksum(straight)[1]


@pytest.mark.parametrize("kind", ["batch", "gradient", "weight", "batches"])
def test_a_nan_is_never_saved(tmp_path, kind):
  """One bad update is skipped; a persistent NaN ends the run."""
  more = {
    "batch": {"bad": {5}},
    "gradient": {"breaks": {"breaks_gradient": 5}},
    "weight": {"breaks": {"breaks_weight": 7}},
    "batches": {"bad": range(5, 99)},
  }[kind]
  is_transient = kind in ("batch", "gradient")
  if is_transient:
    assert descend(tmp_path, 12, 3, **more) == 0
    lines = (tmp_path / "skipped.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [5]
  else:
    with pytest.raises(NonFinite, match=r"3 updates in a row|not a number"):
      descend(tmp_path, 12, 3, **more)
  for _, error, leaves in read_checkpoints.verify_checkpoints(
    str(tmp_path / "checkpoints")
  ):
    assert error is None and leaves
  checkpoints = Checkpoints(str(tmp_path / "checkpoints"))
  assert checkpoints.latest == (12 if is_transient else 6)
  trainer, held_out, _ = make_trainer(tmp_path, 12, 3)
  shapes = jax.eval_shape(trainer.task.init, jax.random.key(0), held_out, None)
  _, state = checkpoints.restore_newest(
    shapes, trainer.sharding.tree_shardings(shapes)
  )
  checkpoints.close()
  assert np.isfinite(state.params["w"]).all()


@pytest.mark.slow
def test_a_run_killed_while_saving_keeps_an_intact_checkpoint(tmp_path):
  """A run that does little but save 24 MB, killed at random times."""
  rng, names_seen = random.Random(0), set()
  run = tmp_path / "run"
  before, kills, steps = 0, repeated(50), 100_000
  for _ in range(kills):
    process = begin(run, steps, every=1, rest=0.0, BIG="1")
    wait_for(run, before + 4, process)
    time.sleep(rng.uniform(0, 0.5))
    process.kill()
    process.communicate()
    names_seen |= {p.name for p in (run / "checkpoints").iterdir()}
    found = list(read_checkpoints.verify_checkpoints(str(run / "checkpoints")))
    assert found and all(error is None for _, error, _ in found)
    assert found[-1][0] >= losses(run)[-1][0] - 3 and found[-1][0] > before
    before = found[-1][0]
  assert any(name.endswith(INCOMPLETE) for name in names_seen) or FRACTION < 1
  process = begin(run, before + 1, every=1, rest=0.0, BIG="1")
  assert process.wait(60) == 0
  process.communicate()
  names = [p.name for p in (run / "checkpoints").iterdir()]
  assert all(name.isdigit() for name in names)  # incomplete writes are removed


def command(stage, folder, steps, first=None, threads=2):
  config = "glyphs_autoencoder.py" if stage == "one" else "glyphs_text.py"
  more = [f"--config.first_stage={first}"] if first else []
  return [
    sys.executable,
    "train.py",
    f"--config={CONFIGS / config}",
    f"--workdir={folder}",
    f"--config.steps={steps}",
    "--config.checkpoints.every=3",
    f"--config.data.threads={threads}",
    *(ONE if stage == "one" else TWO),
    *more,
    NO_PREVIEWS,
  ]


def trained(line, kill_after=None, devices=1):
  """Runs a command; false if it was killed after `kill_after` seconds."""
  process = subprocess.Popen(
    line,
    cwd=ROOT,
    env={**os.environ, "JAX_NUM_CPU_DEVICES": str(devices)},
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
  )
  with contextlib.suppress(subprocess.TimeoutExpired):
    _, err = process.communicate(timeout=kill_after)
    assert process.returncode == 0, err[-3000:]
    return True
  process.kill()
  process.communicate()
  return False


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["one", "two"])
def test_a_run_killed_at_random_equals_an_undisturbed_one(tmp_path, stage):
  steps, first = 20, None
  if stage == "two":
    first = tmp_path / "first"
    assert trained(command("one", first, 2))
  straight = tmp_path / "straight"
  assert trained(command(stage, straight, steps, first))
  begun = time.monotonic()  # again, with all programs in the cache
  assert trained(command(stage, tmp_path / "timed", steps, first))
  seconds = time.monotonic() - begun
  rng, kills, runs = random.Random(1), 0, repeated(20)
  for number in range(runs):
    run = tmp_path / f"run{number}"
    while not trained(
      command(stage, run, steps, first, rng.choice([1, 4, 8])),
      rng.uniform(0.3, 1.1) * seconds,
    ):
      kills += 1
    assert newest_checksum(run) == newest_checksum(straight)
    assert losses(run) == losses(straight)
  print(f"stage {stage}: {kills} kills in {runs} runs, all exact")


def start_pair(folder, steps, rest):
  return start(
    lambda i: [FAULTY, str(folder), str(steps), "5", str(rest)], devices=4
  )


@pytest.mark.slow
def test_a_signal_to_one_process_ends_both_at_the_same_step(straight, tmp_path):
  run = tmp_path / "run"
  running = start_pair(run, 30, 0.1)
  wait_for(run, 7, running[0], 120)
  running[1].send_signal(signal.SIGTERM)
  for process in running:
    assert process.wait(60) == 143, process.communicate()[1]
    process.communicate()
  step, _ = newest_checksum(run)
  assert step == losses(run)[-1][0] < 30
  # Another number of devices restores the same state, and then differs by
  # rounding.
  again = begin(run, 30, rest=0.0)
  assert again.wait(60) == 0, again.communicate()[1]
  resumed, expected = np.array(losses(run)), np.array(losses(straight))
  np.testing.assert_allclose(resumed, expected, rtol=1e-5)


@pytest.mark.slow
def test_a_dead_process_ends_the_others(tmp_path, monkeypatch):
  monkeypatch.setenv("LDM_JAX_HEARTBEAT_SECONDS", "10")
  running = start_pair(tmp_path / "run", 10_000, 0.05)
  wait_for(tmp_path / "run", 5, running[0], 120)
  running[1].kill()
  begun = time.monotonic()
  assert running[0].wait(60) != 0
  assert time.monotonic() - begun < 12
  for process in running:
    process.communicate()


@pytest.mark.slow
def test_an_exception_of_one_process_is_printed_and_ends_both(
  tmp_path, monkeypatch
):
  monkeypatch.setenv("LDM_JAX_HEARTBEAT_SECONDS", "10")
  monkeypatch.setenv("RAISES", "process 1 at step 4")
  running = start_pair(tmp_path / "run", 10_000, 0.05)
  errors = [process.communicate(timeout=120)[1] for process in running]
  assert running[1].returncode == 70
  assert "Traceback" in errors[1] and "process 1 at step 4" in errors[1]
  assert running[0].returncode not in (0, None)


@pytest.mark.slow
def test_three_thousand_steps_leak_no_memory(tmp_path):
  run = tmp_path / "run"
  process = begin(run, 3000, every=1000, rest=0.0, JAX_LOG_COMPILES="1")
  sizes = {}
  while process.poll() is None:
    time.sleep(0.1)
    with contextlib.suppress(OSError, IndexError, ValueError):
      pages = pathlib.Path(f"/proc/{process.pid}/statm").read_text().split()[1]
      sizes[losses(tmp_path / "run")[-1][0]] = int(pages) * 4096 / 2**20
  assert process.returncode == 0, process.communicate()[1]
  err = process.communicate()[1]
  assert (
    err.count("compiling the training step ...")
    == err.count("Compiling jit(step)")
    == 1
  )
  steps, mib = np.array([kv for kv in sizes.items() if kv[0] > 1100]).T
  slope = np.polyfit(steps, mib, 1)[0] * 1000
  print(f"{slope:.2f} MiB per 1000 steps")
  assert slope < 1, (steps, mib)


@pytest.mark.slow
def test_the_resume_command_is_logged_and_works(tmp_path):
  line = command("one", tmp_path / "run", 60)
  process = subprocess.Popen(
    line, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
  )
  wait_for(tmp_path / "run", 2, process, 120)
  process.send_signal(signal.SIGINT)
  out, err = process.communicate(timeout=60)
  assert process.returncode == 130
  resume = re.search(r"resume with: python (.*)", err)[1]
  assert resume.startswith("train.py --config=")
  step = json.loads(out.splitlines()[-1])["step"]
  assert step == newest_checksum(tmp_path / "run")[0]
  done = subprocess.run(
    f"{sys.executable} {resume} --config.steps={step + 1}",
    shell=True,
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0 and f"from step {step}" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["one", "two"])
def test_a_hundred_steps_are_the_same_on_one_and_eight_devices(tmp_path, stage):
  first = tmp_path / "first" if stage == "two" else None
  if first is not None:
    assert trained(command("one", first, 2))
  # At the default learning rate stage one doubles a rounding error every few
  # steps.
  flags = ["--config.task.optimizer.rate=2e-4", "--config.checkpoints.every=99"]
  found, steps = [], repeated(100, least=30)
  for devices in (1, 8):
    run = tmp_path / f"on_{devices}"
    line = [*command(stage, run, steps, first), *flags]
    assert trained(line, devices=devices)
    found.append(np.array(losses(run)))
  np.testing.assert_allclose(*found, rtol=1e-5)
