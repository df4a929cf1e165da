"""A small run for tests that break it: python faulty.py FOLDER STEPS EVERY REST

Descends towards the batches' means, and rests REST seconds before every batch.
With BIG=1 in the environment its checkpoints take a while to write, with
SLOW=SECONDS it takes so long to see that they are there, and RAISES="process 1
at step 4" is raised there and then.
"""

import dataclasses
import os
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ldm_jax.cli.exit_codes import run_command
from ldm_jax.runtime.checkpointing.checkpoint import Checkpoints
from ldm_jax.runtime.checkpointing.policy import CheckpointPolicy
from ldm_jax.runtime.devices import processes
from ldm_jax.runtime.devices.sharding import MeshShape
from ldm_jax.runtime.optimizer import Optimizer
from ldm_jax.runtime.skip_updates import SkipBadUpdatesState
from ldm_jax.training.trainer import Trainer

ROWS = 8


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class State:
  """As tasks have it."""

  step: jax.Array
  params: dict
  opt: SkipBadUpdatesState


@dataclasses.dataclass(frozen=True)
class Descent:
  """Descends mean (w - x - noise)^2 / 2, whose gradient breaks where x does.

  At a step of its own a gradient, or after it a weight, is made a NaN.
  """

  optimizer: Optimizer = Optimizer(rate=0.1, patience=3)
  width: int = 2
  breaks_gradient: int = 0
  breaks_weight: int = 0

  def init(self, key, batch, frozen):
    params = {"w": jnp.zeros((self.width, 2))}
    opt = self.optimizer.build().init(params)
    return State(jnp.zeros((), jnp.int32), params, opt)

  def step(self, state, frozen, batch, key):
    noise = jax.random.normal(key, batch["x"].shape)
    aim = (batch["x"] + 0.1 * noise).mean(0)
    loss = lambda p: jnp.square(p["w"] - aim).mean() / 2
    value, grads = jax.value_and_grad(loss)(state.params)
    step = state.step + 1
    spoil = lambda x, at: x.at[0, 0].set(
      jnp.where(step == at, jnp.nan, x[0, 0])
    )
    grads = {"w": spoil(grads["w"], self.breaks_gradient)}
    tx = self.optimizer.build()
    updates, opt = tx.update(grads, state.opt, state.params)
    params = optax.apply_updates(state.params, updates)
    params = {"w": spoil(params["w"], self.breaks_weight)}
    return State(state.step + 1, params, opt), {"loss": value}

  def measure(self, state, frozen, batch, key):
    return {"w": state.params["w"].mean()}

  def preview(self, state, frozen, batch, key):
    return {}


def rows(step, bad=()):
  """The batch of a step, counted from 1; one number of it is NaN if `bad`."""
  drawn = np.random.default_rng(step).standard_normal((ROWS, 2))
  if step in bad:
    drawn[5, 1] = np.nan
  return drawn.astype(np.float32)


def loop(folder, steps, every, width=2, breaks=None, **more):
  """The run, and what is held out."""
  sharding = MeshShape().build()
  mine = sharding.local_rows(ROWS)
  made = Trainer(
    Descent(width=width, **(breaks or {})),
    sharding,
    str(folder),
    steps,
    checkpoint_policy=CheckpointPolicy(every=every),
    every=1,
    previews_every=0,
    examples=lambda step: range(ROWS * step, ROWS * step + ROWS),
    **more,
  )
  return made, sharding.distribute({"x": rows(0)}), mine


def descend(
  folder, steps, every, rest=0.0, bad=(), width=2, breaks=None, **more
):
  """Runs, or goes on; the exit code."""
  made, held_out, mine = loop(folder, steps, every, width, breaks, **more)

  def stream(start):
    step = start
    while True:
      step += 1
      time.sleep(rest)
      here = f"process {jax.process_index()} at step {step}"
      if here == os.environ.get("RAISES"):
        raise RuntimeError(here)
      yield {"x": rows(step, bad)[mine]}

  return made.run(None, stream, held_out, held_out)


def main(arguments):
  """The command."""
  processes.initialize()
  if slow := float(os.environ.get("SLOW", 0)):
    wait = Checkpoints.wait
    Checkpoints.wait = lambda self: (time.sleep(slow), wait(self))
  folder, steps, every, rest = arguments
  width = 1_000_000 if os.environ.get("BIG") else 2
  return descend(folder, int(steps), int(every), float(rest), width=width)


if __name__ == "__main__":
  sys.path.insert(0, os.path.dirname(os.path.dirname(__file__)))
  run_command(main)
