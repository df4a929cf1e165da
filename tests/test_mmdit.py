"""MMDiT: identity at initialisation, streams, positions, scans, the flow."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import initial_like, random_like, random_variables

from ldm_jax import config_json
from ldm_jax.diffusion.prediction import target
from ldm_jax.diffusion.schedule import Schedule, q_sample
from ldm_jax.latent_diffusion import LatentDiffusion
from ldm_jax.nn.autoencoder import PixelSpace
from ldm_jax.nn.conditioners.embedders import ClassEmbedder, Condition
from ldm_jax.nn.dit.positions import sincos_positions
from ldm_jax.nn.mmdit.blocks import JointBlock
from ldm_jax.nn.mmdit.mmdit import MMDiT
from ldm_jax.nn.mmdit.positions import axis_table, centre_positions
from ldm_jax.runtime.optimizer import Optimizer

SMALL = MMDiT(3, 16, 5, 2, max_size=6, grid=4)
DUAL = SMALL.clone(dual_blocks=(0, 1), is_qk_normed=True)


def inputs(height=4, width=6, b=2):
  """(x_t, t, condition), all different in every image."""
  rng = np.random.default_rng(0)
  array = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
  condition = Condition(context=array(b, 3, 10), vector=array(b, 7))
  return array(b, height, width, 3), 300.0 * jnp.arange(1, b + 1), condition


@functools.cache
def variables(module):
  """Variables of which none is zero."""
  return random_variables(module, *inputs())


@functools.cache
def applying(module):
  """The network, compiled once for equal shapes."""
  return jax.jit(module.apply)


def run(module, *args):
  return np.asarray(applying(module)(variables(module), *args))


def test_a_new_network_outputs_zero_and_its_blocks_are_the_identity():
  new = initial_like(DUAL.init, *inputs())
  out = jax.jit(DUAL.apply)(new, *inputs())
  assert out.shape == (2, 4, 6, 3) and out.dtype == jnp.float32
  assert not np.any(out)
  array = lambda *shape: random_like(jax.ShapeDtypeStruct(shape, jnp.float32))
  x, context, emb = array(2, 5, 16), array(2, 3, 16), array(2, 16)
  for options in ({"is_dual": True}, {"is_last": True}):
    block = JointBlock(2, 32, **options)
    new = initial_like(block.init, x, context, emb)
    found = jax.jit(block.apply)(new, x, context, emb)
    for ours, theirs in zip(found, (x, context), strict=True):
      np.testing.assert_array_equal(ours, theirs)


def test_scan_and_remat_change_nothing_and_gradients_are_finite():
  """Runs of two dual blocks, two plain ones and the last."""
  scanned = DUAL.clone(is_scanned=True, remat="full")

  def value_and_grads(module):
    loss = lambda *args: (module.apply(*args) ** 2).mean()
    return jax.jit(jax.value_and_grad(loss))(variables(DUAL), *inputs())

  plain, other = value_and_grads(DUAL), value_and_grads(scanned)
  for _, grads in (plain, other):
    assert not np.any(grads["params"].pop("fixed_positions"))
    last = grads["params"]["block_4"]["context"]
    for name in ("q", "q_norm"):  # texts end here, and attend to nothing
      assert not any(map(np.any, jax.tree.leaves(last.pop(name))))
  for one, two in zip(*map(jax.tree.leaves, (plain, other)), strict=True):
    assert np.all(np.isfinite(one)) and np.any(one)
    scale = max(1, float(np.abs(two).max()))
    np.testing.assert_allclose(one, two, atol=1e-5 * scale)


def test_every_image_depends_on_its_own_inputs_alone():
  xt, t, condition = inputs()
  both = run(DUAL, xt, t, condition)
  one = jax.tree.map(lambda x: x[1:], condition)
  scale = np.abs(both).max()
  np.testing.assert_allclose(
    both[1:], run(DUAL, xt[1:], t[1:], one), atol=1e-5 * scale
  )
  for other in (
    (xt, t + 50, condition),
    (xt, t, condition.replace(vector=condition.vector + 1)),
    (xt, t, condition.replace(context=condition.context + 1)),
    (xt[:, ::-1], t, condition),
  ):
    assert np.abs(run(DUAL, *other) - both).max() > 1e-3 * scale


def test_the_order_of_texts_does_not_matter_and_that_of_patches_does():
  """Text tokens have no positions in the network."""
  xt, t, condition = inputs()
  expected = run(SMALL, xt, t, condition)
  reordered = condition.replace(context=condition.context[:, ::-1])
  found = run(SMALL, xt, t, reordered)
  scale = np.abs(expected).max()
  np.testing.assert_allclose(found, expected, atol=1e-5 * scale)
  moved = run(SMALL, jax.device_put(np.roll(xt, 2, axis=2)), t, condition)
  assert np.abs(np.roll(moved, -2, axis=2) - expected).max() > 1e-3 * scale


def test_bfloat16_is_near_and_returns_float32():
  exact = run(SMALL, *inputs())
  half = SMALL.clone(dtype="bfloat16")
  out = jax.jit(half.apply)(variables(SMALL), *inputs())
  assert out.dtype == jnp.float32
  assert np.abs(out - exact).max() < 0.05 * np.abs(exact).max()


def test_an_image_has_the_positions_of_the_centre():
  table = axis_table(6, 16, 4)
  whole = centre_positions(table, (6, 6))
  np.testing.assert_allclose(whole, sincos_positions((6, 6), 16, 4), atol=1e-6)
  centre = centre_positions(table, (2, 3)).reshape(2, 3, 16)
  np.testing.assert_array_equal(centre, whole.reshape(6, 6, 16)[2:4, 1:4])
  with pytest.raises(ValueError, match="at most 6 patches"):
    centre_positions(table, (2, 7))


def test_weight_decay_leaves_positions_as_they_are():
  params = {"kernel": jnp.ones((2, 2)), "fixed_positions": jnp.ones((2, 2))}
  for muon in (None, 1e-3):
    optimizer = Optimizer(0.1, weight_decay=0.1, muon=muon).build()

    @jax.jit
    def update(params, optimizer=optimizer):
      grads = jax.tree.map(jnp.zeros_like, params)
      return optimizer.update(grads, optimizer.init(params), params)[0]

    updates = update(params)
    assert np.any(updates["kernel"])
    assert not np.any(updates["fixed_positions"])


def test_inputs_that_do_not_fit_are_refused():
  xt, t, condition = inputs()
  refused = lambda module, c: module.init(jax.random.key(0), xt, t, c)
  with pytest.raises(ValueError, match="needs a context"):
    refused(SMALL, condition.replace(context=None))
  with pytest.raises(ValueError, match="has no vector"):
    refused(SMALL, condition.replace(vector=None))
  with pytest.raises(ValueError, match="takes_vector=False"):
    refused(SMALL.clone(takes_vector=False), condition)
  with pytest.raises(ValueError, match="takes no guidance"):
    refused(SMALL, condition.replace(guidance=t))
  with pytest.raises(ValueError, match="multiple of heads=3"):
    MMDiT(width=16, heads=3)
  with pytest.raises(ValueError, match="below depth=2"):
    MMDiT(depth=2, dual_blocks=(2,))


def test_a_network_without_pooled_texts_has_no_layers_for_them():
  xt, t, condition = inputs()
  module = SMALL.clone(takes_vector=False)
  shapes = jax.eval_shape(
    module.init, jax.random.key(0), xt, t, condition.replace(vector=None)
  )["params"]
  needed = variables(SMALL)["params"]
  assert needed.keys() - shapes.keys() == {"vector_1", "vector_2"}


def test_a_config_comes_back():
  model = LatentDiffusion(
    PixelSpace(),
    DUAL,
    (ClassEmbedder(3, 16, joins="both"),),
    Schedule("rectified_flow"),
    "flow",
  )
  text = config_json.to_json(model)
  assert config_json.from_json(text) == model


def test_the_flow_feeds_the_straight_line_at_a_thousand_times_its_time():
  x0, _, condition = inputs()
  noise = jax.random.normal(jax.random.key(5), x0.shape)
  flow = Schedule("rectified_flow", steps=8)
  flowing = jax.jit(SMALL.clone(flow_steps=8).apply)
  plain = jax.jit(SMALL.clone(flow_steps=None).apply)
  for time in (0.0, 3.0, 7.0):
    t, s = jnp.full((2,), time), (time + 1) / 8
    z = (1 - s) * x0 + s * noise
    expected = plain(variables(SMALL), z, jnp.full((2,), 1000 * s), condition)
    xt = q_sample(flow, x0, t, noise)
    found = flowing(variables(SMALL), xt, t, condition)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, atol=2e-5 * scale)
    np.testing.assert_allclose(
      target("flow", flow, x0, t, noise), noise - x0, atol=1e-6
    )
