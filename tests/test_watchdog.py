"""A run that stands still says where."""

import json
import re
import subprocess
import sys
import time

import pytest

from ldm_jax.runtime.monitoring.watchdog import DEVICES, INPUT, Watchdog


def a_place_to_sleep(seconds):
  time.sleep(seconds)


@pytest.mark.parametrize("what", [INPUT, DEVICES])
def test_stacks_are_shown_once_for_each_wait(what, capfd):
  with Watchdog(timeout=0.2) as watchdog:
    for _ in range(2):
      watchdog.wait_for(what)
      a_place_to_sleep(0.6)
      watchdog.wait_for(None)
  said = capfd.readouterr().err
  assert len(re.findall(f"warning: waiting for {what} for [01] s", said)) == 2
  assert "in a_place_to_sleep" in said


def test_what_is_not_waited_for_or_soon_there_is_not_told(capfd):
  with Watchdog(timeout=0.3) as watchdog:
    time.sleep(0.5)  # a compilation
    for _ in range(8):
      watchdog.wait_for(DEVICES)
      time.sleep(0.1)
      watchdog.step_done()
  with Watchdog(timeout=0.0) as watchdog:
    watchdog.wait_for(INPUT)
    time.sleep(0.2)
  assert capfd.readouterr().err == ""


def test_long_steps_have_longer_to_come():
  watchdog = Watchdog(timeout=0.01)
  for _ in range(6):
    time.sleep(0.05)
    watchdog.step_done()
  assert 0.15 <= watchdog.limit < 0.3


HANGING = """
import json, sys, time
import jax
import jax.numpy as jnp
from ldm_jax.training.trainer import Loop
from ldm_jax.runtime.devices.sharding import MeshShape
sys.path.insert(0, "tests")
from test_runtime import Falling, stream

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

loop = Loop(
  Stuck(), MeshShape().build(), sys.argv[1], 9, previews_every=0, hang=0.5,
  abort=2.0,
)
held_out = loop.sharding.distribute(next(stream(0)))
loop.run(None, lambda start: stream(start, stuck_reader), held_out, held_out)
"""


@pytest.mark.parametrize("what", ["input 0", "input 3", "devices 3"])
def test_what_is_stuck_is_named_and_ends_the_run_if_it_may(tmp_path, what):
  begun = time.monotonic()
  done = subprocess.run(
    [sys.executable, "-c", HANGING, str(tmp_path), what],
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert done.returncode == 70
  assert time.monotonic() - begun < 50
  kind, _ = what.split()
  assert f"waiting for the {kind}" in done.stderr
  assert f"gave up waiting for the {kind}" in done.stderr
  assert ("in stuck_reader" in done.stderr) == (kind == "input")
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  assert all(json.loads(line) for line in lines)
