"""Updates with bad gradients are skipped, and reported."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from faulty import descend

from ldm_jax.errors import NonFinite
from ldm_jax.runtime.checkpointing.checkpoint import Checkpoints
from ldm_jax.runtime.monitoring.metric_writer import read_metrics
from ldm_jax.runtime.optimizer import Optimizer
from ldm_jax.runtime.skip_updates import WINDOW, leaf_names, update_health

PARAMS = {"a": jnp.ones((3, 4)), "b": {"c": jnp.ones(5)}}


def gradients(seed, scale=1.0):
  rng = np.random.default_rng(seed)
  draw = lambda x: scale * jnp.asarray(rng.standard_normal(x.shape), x.dtype)
  return jax.tree.map(draw, PARAMS)


def updated(optimizer, sequence):
  """Parameters after each update, and the last state."""
  tx = optimizer.build()
  update = jax.jit(tx.update)
  params, state, seen = PARAMS, tx.init(PARAMS), []
  for grads in sequence:
    updates, state = update(grads, state, params)
    params = optax.apply_updates(params, updates)
    seen.append(params)
  return seen, state


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("muon", [None, 0.1])
def test_a_gradient_that_is_not_finite_changes_nothing(value, muon):
  optimizer = Optimizer(rate=0.1, warmup=3, muon=muon, clip=1.0)
  good = [gradients(n) for n in range(4)]
  bad = gradients(9)
  bad["b"]["c"] = bad["b"]["c"].at[2].set(value)
  straight, ended = updated(optimizer, good)
  broken, state = updated(optimizer, [*good[:2], bad, *good[2:]])
  same = functools.partial(jax.tree.map, np.testing.assert_array_equal)
  same(broken[1], broken[2])
  same(broken[-1], straight[-1])
  same(state.inner, ended.inner)
  assert (int(state.skipped), int(state.in_row)) == (1, 0)
  assert leaf_names({"opt": state})[int(state.culprit)] == "opt/b/c"


def test_a_norm_that_overflows_is_skipped():
  huge = jax.tree.map(lambda x: x * 1e30, gradients(0))
  seen, state = updated(Optimizer(), [huge])
  jax.tree.map(np.testing.assert_array_equal, seen[0], PARAMS)
  assert int(state.in_row) == 1 and int(state.culprit) == 0


def norms(values, spikes=6.0):
  """Which of a sequence of gradient norms are accepted."""
  optimizer = Optimizer(rate=1e-3, spikes=spikes)
  unit = gradients(0)
  size = optax.tree.norm(unit)
  scaled = [jax.tree.map(lambda g, v=v: g * v / size, unit) for v in values]
  seen, _ = updated(optimizer, scaled)
  accepted, before = [], PARAMS
  for params in seen:
    accepted.append(not np.array_equal(params["a"], before["a"]))
    before = params
  return accepted


def test_each_spike_is_skipped_once():
  rng = np.random.default_rng(0)
  calm = list(1 + 0.1 * rng.standard_normal(2 * WINDOW))
  cases = {
    "one": [*calm, 100.0, *calm[:20]],
    "not finite": [*calm, np.nan, *calm[:20]],
    "two": [*calm, 100.0, 1.0, 100.0, *calm[:20]],
    "a constant": [1.0] * (WINDOW + 20),
    "slow": list(np.exp(np.arange(3 * WINDOW) / 200)),
    "early": [100.0, *calm[:20]],
  }
  for name, expected in (
    ("one", [len(calm)]),
    ("not finite", [len(calm)]),
    ("two", [len(calm), len(calm) + 2]),
    ("a constant", []),
    ("slow", []),
    ("early", []),
  ):
    accepted = norms(cases[name])
    assert [i for i, a in enumerate(accepted) if not a] == expected, name
  assert all(norms(cases["one"], spikes=None))


def test_norms_that_stay_high_are_accepted_in_the_end():
  rng = np.random.default_rng(0)
  calm = list(1 + 0.1 * rng.standard_normal(WINDOW))
  accepted = norms([*calm, *[5 * v for v in calm]])
  after = accepted[WINDOW:]
  assert not after[0] and all(after[-40:])


def test_invalid_patience_and_spikes_are_refused():
  for wrong in ({"patience": 0}, {"spikes": 0.0}):
    with pytest.raises(ValueError, match=r"Optimizer.(patience|spikes): needs"):
      Optimizer(**wrong)


def test_the_health_of_two_optimizers_is_combined():
  tx = Optimizer(patience=3).build()
  first, second = tx.init(PARAMS), tx.init({"d": jnp.ones(2)})
  bad = {"d": jnp.array([1.0, jnp.nan])}
  _, second = tx.update(bad, second, {"d": jnp.ones(2)})
  state = {"opt": first, "critic_opt": second}
  health = update_health(state)
  assert leaf_names(state)[int(health["culprit"])] == "critic_opt/d"
  assert int(health["skipped"]) == int(health["in_row"]) == 1
  assert update_health({"step": jnp.int32(0)}) == {}


def test_one_bad_batch_costs_one_update_and_is_reported(tmp_path, caplog):
  caplog.set_level("INFO", "ldm_jax")
  assert descend(tmp_path / "run", 12, 4, bad={4}) == 0
  lines = (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()
  assert [json.loads(line) for line in lines] == [
    {
      "step": 4,
      "reason": "the gradient at opt/w is not finite",
      "examples": list(range(32, 40)),
    }
  ]
  message = "step 4 is skipped: the gradient at opt/w is not finite"
  assert message in caplog.text
  metrics = read_metrics(str(tmp_path / "run"))
  losses = {line["step"]: line["loss"] for line in metrics if "loss" in line}
  assert [step for step, loss in losses.items() if loss is None] == [4]
  skipped = [line["skipped"] for line in metrics if "skipped" in line]
  assert skipped == [0] * 3 + [1] * 9
  assert not any("in_row" in line for line in metrics)
  # The state saved at step 4 is that without its update.
  saved = [line["validation_w"] for line in metrics if "validation_w" in line]
  assert len(saved) == 3 and np.isfinite(saved).all()


def test_a_repeated_step_is_reported_once(tmp_path):
  assert descend(tmp_path, 6, 4, bad={5}) == 0
  shutil.rmtree(tmp_path / "checkpoints" / "6")  # as if the run had been killed
  assert descend(tmp_path, 8, 4, bad={5, 7}) == 0
  lines = (tmp_path / "skipped.jsonl").read_text().splitlines()
  assert [json.loads(line)["step"] for line in lines] == [5, 7]


def test_too_many_skipped_updates_in_a_row_end_the_run(tmp_path):
  with pytest.raises(NonFinite, match="3 updates in a row, up to step 8"):
    descend(tmp_path, 12, 4, bad={2, 3, 6, 7, 8, 9, 10})
  checkpoints = Checkpoints(str(tmp_path / "checkpoints"))
  assert checkpoints.latest == 4
  checkpoints.close()
