"""A small training run for fault injection.

  python faulty.py FOLDER STEPS EVERY REST

EVERY steps a checkpoint is written; REST seconds are slept before every batch.
In the environment, BIG=1 makes checkpoints slow to write, SLOW=SECONDS makes
waiting for them slow, and RAISES="process 1 at step 4" raises an exception
there.
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
from ldm_jax.cli.streams import logging_setup
from ldm_jax.runtime.checkpointing.checkpoint import Checkpoints
from ldm_jax.runtime.checkpointing.policy import CheckpointPolicy
from ldm_jax.runtime.devices import processes
from ldm_jax.runtime.devices.sharding import MeshShape
from ldm_jax.runtime.optimizer import Optimizer
from ldm_jax.runtime.signals import exit_code
from ldm_jax.runtime.skip_updates import SkipBadUpdatesState
from ldm_jax.training.trainer import Trainer

ROWS = 8


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class State:
  """The state of a task."""

  step: jax.Array
  params: dict
  opt: SkipBadUpdatesState


@dataclasses.dataclass(frozen=True)
class Descent:
  """Minimises mean (w - x - noise)^2 / 2; a NaN of x reaches the gradient.

  Attributes:
    breaks_gradient, breaks_weight: the step whose gradient, or after which a
      weight, becomes NaN; 0 for none.
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
    target = (batch["x"] + 0.1 * noise).mean(0)
    loss = lambda p: jnp.square(p["w"] - target).mean() / 2
    value, grads = jax.value_and_grad(loss)(state.params)
    step = state.step + 1
    set_nan = lambda x, at: x.at[0, 0].set(
      jnp.where(step == at, jnp.nan, x[0, 0])
    )
    grads = {"w": set_nan(grads["w"], self.breaks_gradient)}
    tx = self.optimizer.build()
    updates, opt = tx.update(grads, state.opt, state.params)
    params = optax.apply_updates(state.params, updates)
    params = {"w": set_nan(params["w"], self.breaks_weight)}
    return State(state.step + 1, params, opt), {"loss": value}

  def measure(self, state, frozen, batch, key):
    return {"w": state.params["w"].mean()}

  def preview(self, state, frozen, batch, key):
    return {}


def rows(step, bad=()):
  """The batch of a step, from 1; holds a NaN if the step is in `bad`."""
  drawn = np.random.default_rng(step).standard_normal((ROWS, 2))
  if step in bad:
    drawn[5, 1] = np.nan
  return drawn.astype(np.float32)


def make_trainer(folder, steps, every, width=2, breaks=None, **more):
  """The trainer, a held-out batch, and this process's rows."""
  sharding = MeshShape().build()
  local = sharding.local_rows(ROWS)
  trainer = Trainer(
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
  return trainer, sharding.distribute({"x": rows(0)}), local


def descend(
  folder, steps, every, rest=0.0, bad=(), width=2, breaks=None, **more
):
  """Trains or resumes; the exit code."""
  trainer, held_out, local = make_trainer(
    folder, steps, every, width, breaks, **more
  )

  def stream(start):
    step = start
    while True:
      step += 1
      time.sleep(rest)
      here = f"process {jax.process_index()} at step {step}"
      if here == os.environ.get("RAISES"):
        raise RuntimeError(here)
      yield {"x": rows(step, bad)[local]}

  outcome = trainer.run(None, stream, held_out, held_out)
  return exit_code(outcome.interrupted)


def main(arguments):
  """The command."""
  logging_setup.configure()
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
