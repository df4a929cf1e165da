"""The watchdog logs the stacks of a run that makes no progress."""

import json
import logging
import re
import subprocess
import sys
import time

import pytest

from ldm_jax.runtime.monitoring import watchdog as module
from ldm_jax.runtime.monitoring.watchdog import DEVICES, INPUT, Watchdog


def a_place_to_sleep(seconds):
  time.sleep(seconds)


@pytest.mark.parametrize("what", [INPUT, DEVICES])
def test_stacks_are_logged_once_for_each_wait(what, caplog):
  with Watchdog(timeout=0.2) as watchdog:
    for _ in range(2):
      watchdog.wait_for(what)
      a_place_to_sleep(0.6)
      watchdog.wait_for(None)
  line = f"process 0: waiting for {what} for [01] s"
  assert len(re.findall(line, caplog.text)) == 2
  assert "in a_place_to_sleep" in caplog.text
  for record in caplog.records:
    assert record.levelno == logging.ERROR and record.all_processes


def test_short_waits_and_unwatched_time_are_not_reported(caplog):
  with Watchdog(timeout=0.3) as watchdog:
    time.sleep(0.5)  # a compilation
    for _ in range(8):
      watchdog.wait_for(DEVICES)
      time.sleep(0.1)
      watchdog.step_done()
  with Watchdog(timeout=0.0) as watchdog:
    watchdog.wait_for(INPUT)
    time.sleep(0.2)
  assert caplog.text == ""


def test_the_limit_grows_with_the_median_step():
  watchdog = Watchdog(timeout=0.01)
  for _ in range(6):
    time.sleep(0.05)
    watchdog.step_done()
  assert 0.15 <= watchdog.limit < 0.3


class Blocked(logging.Handler):
  """A handler that hangs, as one that writes to a dead pipe."""

  def emit(self, record):
    time.sleep(3)


def test_stacks_reach_stderr_if_logging_hangs(capfd, monkeypatch):
  monkeypatch.setattr(module, "LOG_SECONDS", 0.1)
  monkeypatch.setattr(sys, "__stderr__", sys.stderr)
  handler = Blocked()
  module.logger.addHandler(handler)
  try:
    with Watchdog(timeout=0.2) as watchdog, watchdog.waiting_for(INPUT):
      a_place_to_sleep(0.8)
  finally:
    module.logger.removeHandler(handler)
  err = capfd.readouterr().err
  assert "error: process 0: waiting for the input" in err
  assert "in a_place_to_sleep" in err


HANGING = """
import json, sys, time
import jax
import jax.numpy as jnp
from ldm_jax.cli.streams import logging_setup
from ldm_jax.training.trainer import Trainer
from ldm_jax.runtime.devices.sharding import MeshShape
sys.path.insert(0, "tests")
from test_runtime import Falling, stream

logging_setup.configure()

def stuck_reader(step):
  if sys.argv[2] == f"input {step}":
    time.sleep(60)

def stuck_device(x, step):
  if sys.argv[2] == f"devices {step}":
    time.sleep(60)
  return x

class Stuck(Falling):
  def step(self, state, frozen, batch, key):
    state, metrics = super().step(state, frozen, batch, key)
    x = jax.pure_callback(stuck_device, state.x, state.x, state.step)
    return type(state)(state.step, x), metrics

trainer = Trainer(
  Stuck(), MeshShape().build(), sys.argv[1], 9, previews_every=0, hang=0.5,
  abort=2.0,
)
held_out = trainer.sharding.distribute(next(stream(0)))
trainer.run(
  None, lambda start: stream(start, stuck_reader), held_out, held_out
)
"""


@pytest.mark.parametrize("what", ["input 0", "input 3", "devices 3"])
def test_a_stuck_run_names_what_it_waits_for_and_ends_with_70(tmp_path, what):
  start = time.monotonic()
  done = subprocess.run(
    [sys.executable, "-c", HANGING, str(tmp_path), what],
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert done.returncode == 70, done.stderr
  assert time.monotonic() - start < 50
  kind, _ = what.split()
  assert f"error: process 0: waiting for the {kind}" in done.stderr
  assert f"gave up waiting for the {kind}" in done.stderr
  assert ("in stuck_reader" in done.stderr) == (kind == "input")
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  assert all(json.loads(line) for line in lines)
