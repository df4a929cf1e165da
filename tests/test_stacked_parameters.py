"""Scanned blocks, stacked in training states and apart everywhere else."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from networks import random_like
from untrained import untrained

from ldm_jax.cli import train
from ldm_jax.latent_diffusion import LatentDiffusion, Parameters
from ldm_jax.nn.conditioners.embedders import Condition
from ldm_jax.nn.conditioners.t5_embedder import T5Embedder
from ldm_jax.nn.dit.dit import DiT
from ldm_jax.nn.encoders.t5 import T5Encoder
from ldm_jax.nn.flux.flux import Flux
from ldm_jax.nn.mmdit.mmdit import MMDiT
from ldm_jax.nn.operators.block_scan import (
  has_stacks,
  stack_scanned,
  unstack_blocks,
)
from ldm_jax.pretrained.open_model import open_model
from ldm_jax.pretrained.stacked_parameters import (
  stack_parameters,
  unstack_parameters,
)
from ldm_jax.run import Run
from ldm_jax.runtime.devices.sharding import MeshShape
from ldm_jax.runtime.optimizer import Optimizer

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"
SCANNED = {"is_scanned": True, "remat": "full"}


def normal(*shape):
  return jnp.asarray(np.random.default_rng(sum(shape)).normal(size=shape))


TEXT = Condition(context=normal(2, 3, 12), vector=normal(2, 10))
NETWORKS = {
  "dit": (DiT(3, 16, depth=3, heads=2, **SCANNED), Condition()),
  "flux": (Flux(3, 16, 2, 3, 2, (2, 2, 4), **SCANNED), TEXT),
  "mmdit": (
    MMDiT(3, 16, depth=5, heads=2, dual_blocks=(0, 1), max_size=4, **SCANNED),
    TEXT,
  ),
}
STACKS = {
  "dit": ["stacked_block_0_to_2"],
  "flux": ["stacked_double_0_to_1", "stacked_single_0_to_2"],
  "mmdit": ["stacked_block_0_to_1", "stacked_block_2_to_3"],
}


def network(name):
  """(module, inputs, random variables with each block apart)."""
  module, condition = NETWORKS[name]
  inputs = normal(2, 4, 4, 3), jnp.arange(2.0), condition
  shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
  return module, inputs, random_like(shapes)


def assert_trees_equal(one, other):
  assert jax.tree.structure(one) == jax.tree.structure(other)
  jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_computes_with_stacks_as_without(name):
  module, inputs, apart = network(name)
  stacked = stack_scanned(module, apart)
  missing = stacked["params"].keys() - apart["params"].keys()
  assert sorted(missing) == STACKS[name] and has_stacks(stacked)
  assert_trees_equal(unstack_blocks(stacked), apart)

  def value_and_grads(variables):
    loss = lambda v: (module.apply(v, *inputs) ** 2).mean()
    return jax.jit(jax.value_and_grad(loss))(variables)

  loss, grads = value_and_grads(stacked)
  expected, of_blocks = value_and_grads(apart)
  assert np.isfinite(loss) and loss > 0
  np.testing.assert_allclose(loss, expected, rtol=1e-6)
  for stack in missing:
    assert all(np.any(leaf) for leaf in jax.tree.leaves(grads["params"][stack]))
  for one, other in zip(
    *map(jax.tree.leaves, (unstack_blocks(grads), of_blocks)), strict=True
  ):
    scale = float(np.abs(other).max())
    np.testing.assert_allclose(one, other, atol=1e-5 * scale)


def test_blocks_of_a_conditioner_are_stacked_by_its_name():
  encoder = T5Encoder(11, 8, 3, 2, 4, 12, is_scanned=True)
  part = T5Embedder(encoder, 4)
  tokens = jnp.asarray([[3, 5, 1, 0]])
  inputs = tokens, jnp.asarray([False])
  shapes = jax.eval_shape(part.init, jax.random.key(0), *inputs)
  variables = random_like(shapes)
  model = LatentDiffusion(conditioners=(part,))
  held = {"conditioners": {part.input_key: variables}}
  stacked = stack_parameters(model, held)
  found = stacked["conditioners"][part.input_key]
  assert "stacked_block_0_to_2" in found["params"]["encoder"]
  np.testing.assert_allclose(
    part.apply(found, *inputs).context,
    part.apply(variables, *inputs).context,
    atol=1e-6,
  )
  shapes = stack_parameters(
    model, {"conditioners": {part.input_key: jax.eval_shape(lambda: variables)}}
  )
  assert shapes == jax.eval_shape(lambda: stacked)
  params = Parameters(None, None, stacked["conditioners"], {})
  assert_trees_equal(
    dict(unstack_parameters(params).conditioners), held["conditioners"]
  )


def test_parameters_without_stacks_are_not_copied():
  part = {"params": {"mix_0_to_1": {"kernel": jnp.ones(3)}}}
  params = Parameters(None, None, {}, part)
  assert unstack_parameters(params) is params
  assert stack_parameters(LatentDiffusion(), {"unet": part})["unet"] is part


@pytest.mark.parametrize("muon", [None, 0.02])
def test_an_optimizer_updates_every_block_of_a_stack(muon):
  """No norm and no iteration joins two blocks."""
  module, _, apart = network("dit")
  grads = random_like(apart, seed=1)
  optimizer = Optimizer(1e-3, muon=muon).build()

  @jax.jit
  def update(params, grads):
    return optimizer.update(grads, optimizer.init(params), params)[0]

  found = update(stack_scanned(module, apart), stack_scanned(module, grads))
  expected = update(apart, grads)
  for one, other in zip(
    *map(jax.tree.leaves, (unstack_blocks(found), expected)), strict=True
  ):
    assert np.any(other)
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-9)


def test_a_stack_is_sharded_as_its_blocks():
  sharding = MeshShape(fsdp=4, tensor=2).build()
  block = {
    "q/kernel": (256, 128),
    "down/kernel": (512, 64),
    "time/kernel": (64, 512),
    "norm/scale": (4092,),
  }
  for name, shape in block.items():
    spec = sharding.spec(f"unet/params/block_3/{name}", shape)
    found = sharding.spec(
      f"unet/params/stacked_block_0_to_3/{name}", (4, *shape)
    )
    expected = P(None, *spec) if any(spec) else P()
    assert found == expected, name
  spec = sharding.spec("ema/stacked_block_0_to_3/q/kernel", (4, 256, 128))
  assert spec[2] == "tensor"


@pytest.mark.slow
def test_a_run_stores_stacks_and_a_model_has_none(tmp_path):
  """Trained, resumed, opened and begun from, with a scan and without."""
  data = ["--config.data.batch=8", "--config.data.held_out=8"]
  data += ["--config.reports.every=1", "--config.reports.previews_every=0"]
  trunk, unet = "--config.task.autoencoder.trunk.", "--config.task.model.unet."
  small = [f"{trunk}channels=8", f"{trunk}multipliers=1,2", f"{trunk}groups=4"]
  net = [f"{unet}width=16", f"{unet}depth=3", f"{unet}heads=2"]
  net += ["--config.task.model.conditioners.0.width=16"]

  def run(config, name, steps, *flags):
    flags = f"--config.steps={steps}", *flags, *data
    place = f"--workdir={tmp_path / name}"
    return train.main([f"--config={CONFIGS / config}", place, *flags])

  path = CONFIGS / "glyphs_autoencoder.py"
  untrained(path, tmp_path / "one", [*small, *data])
  first = f"--config.first_stage={tmp_path / 'one'}"
  scanned = f"{unet}is_scanned=true"
  net.append("--config.task.ema_decay=None")  # "params" are opened
  for steps in (1, 2):
    assert run("glyphs_dit.py", "dit", steps, first, scanned, *net) == 0
  stored = Run.open(str(tmp_path / "dit")).trained(MeshShape().build())
  assert "stacked_block_0_to_2" in stored["unet"]["params"]
  opened = open_model(str(tmp_path / "dit"))
  assert_trees_equal(opened.params.unet, unstack_blocks(stored["unet"]))
  start = f"--config.start={tmp_path / 'dit'}"
  still = ["--config.task.optimizer.rate=1e-12"]
  still.append("--config.task.optimizer.muon=1e-12")
  for name, flags in (("again", [scanned]), ("apart", [])):
    assert run("glyphs_dit.py", name, 1, start, *flags, *still, *net) == 0
    tuned = open_model(str(tmp_path / name)).params.unet
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
      tuned,
      opened.params.unet,
    )
