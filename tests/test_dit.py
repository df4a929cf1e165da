"""DiT: patches, positions, identity at initialisation, options, SiT's time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import initial_like, random_like, random_variables

from ldm_jax import config_json
from ldm_jax.diffusion.prediction import target
from ldm_jax.diffusion.samplers import SamplerConfig, image_keys, sample
from ldm_jax.diffusion.schedule import Schedule, q_sample
from ldm_jax.latent_diffusion import LatentDiffusion, Parameters
from ldm_jax.nn.autoencoder import PixelSpace
from ldm_jax.nn.conditioners.embedders import ClassEmbedder, Condition
from ldm_jax.nn.dit.blocks import DiTBlock
from ldm_jax.nn.dit.dit import SIZES, DiT, dit_of_size
from ldm_jax.nn.dit.patches import PatchEmbedding, patchify, unpatchify
from ldm_jax.nn.dit.positions import (
  axis_positions,
  rotary_angles,
  rotate,
  sincos_positions,
)

TINY = DiT(out_channels=3, width=16, depth=2, heads=2)
MODERN = TINY.clone(
  positions="rope",
  registers=2,
  norm="rms",
  mlp="swiglu",
  is_qk_normed=True,
  learns_variance=True,
)


def inputs(height=4, width=6, b=2):
  """(x_t, t, condition), all different in every image."""
  draw = np.random.default_rng(0).standard_normal
  xt = jnp.asarray(draw((b, height, width, 3)), jnp.float32)
  vector = jnp.asarray(draw((b, 16)), jnp.float32)
  return xt, 100.0 * jnp.arange(1, b + 1), Condition(vector=vector)


@functools.cache
def perturbed(module):
  """Variables of which none is zero."""
  return random_variables(module, *inputs())


@functools.cache
def applying(module):
  """The network, compiled once for equal shapes."""
  return jax.jit(module.apply)


def test_unpatchify_inverts_patchify():
  x = jnp.arange(2 * 6 * 4 * 3.0).reshape(2, 6, 4, 3)
  tokens = patchify(x, 2)
  assert tokens.shape == (2, 6, 12)
  np.testing.assert_array_equal(tokens[1, 3], x[1, 2:4, 2:4].reshape(-1))
  np.testing.assert_array_equal(unpatchify(tokens, 2, (3, 2)), x)
  with pytest.raises(ValueError, match="multiples of 4"):
    patchify(x, 4)


def test_a_patch_embedding_is_a_strided_convolution():
  x, *_ = inputs()
  module = PatchEmbedding(2, 16)
  variables = random_variables(module, x)
  kernel, bias = (variables["params"][name] for name in ("kernel", "bias"))
  expected = bias + jax.lax.conv_general_dilated(
    x, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  found = module.apply(variables, x)
  np.testing.assert_allclose(found, expected.reshape(2, 6, 16), atol=1e-5)


@pytest.mark.parametrize("module", [TINY, MODERN], ids=["tiny", "modern"])
def test_a_new_network_outputs_zero_and_its_blocks_are_the_identity(module):
  out = applying(module)(initial_like(module.init, *inputs()), *inputs())
  assert out.shape == (2, 4, 6, 3) and out.dtype == jnp.float32
  assert not np.any(out)
  block = DiTBlock(2, 32, norm=module.norm, mlp=module.mlp)
  array = lambda *shape: random_like(jax.ShapeDtypeStruct(shape, jnp.float32))
  x, emb = array(2, 5, 16), array(2, 16)
  new = initial_like(lambda *of: block.init(*of, None), x, emb)
  np.testing.assert_array_equal(jax.jit(block.apply)(new, x, emb, None), x)


def test_scan_and_remat_change_nothing_and_gradients_are_finite():
  module = MODERN.clone(learns_variance=False)
  variables = perturbed(module)

  def value_and_grads(module):
    loss = lambda *args: (module.apply(*args) ** 2).mean()
    return jax.jit(jax.value_and_grad(loss))(variables, *inputs())

  plain = value_and_grads(module)
  scanned = value_and_grads(module.clone(is_scanned=True, remat="full"))
  for one, other in zip(*map(jax.tree.leaves, (plain, scanned)), strict=True):
    assert np.all(np.isfinite(one)) and np.any(one)
    scale = max(1, float(np.abs(other).max()))
    np.testing.assert_allclose(one, other, atol=1e-5 * scale)


def test_every_image_depends_on_its_own_inputs_alone():
  xt, t, condition = inputs()
  apply = functools.partial(applying(MODERN), perturbed(MODERN))
  both = apply(xt, t, condition)
  alone = apply(xt[1:], t[1:], Condition(vector=condition.vector[1:]))
  scale = np.abs(both).max()
  np.testing.assert_allclose(both[1:], alone, atol=1e-5 * scale)
  for other in (
    (xt, t + 5, condition),
    (xt, t, Condition(vector=condition.vector + 1)),
    (xt[:, ::-1], t, condition),
  ):
    assert np.abs(apply(*other) - both).max() > 1e-3


def test_bfloat16_is_near_and_returns_float32():
  exact = applying(TINY)(perturbed(TINY), *inputs())
  half = TINY.clone(dtype="bfloat16")
  out = applying(half)(perturbed(TINY), *inputs())
  assert out.dtype == jnp.float32
  assert np.abs(out - exact).max() < 0.05 * np.abs(exact).max()


def test_the_variance_is_not_returned_and_not_trained():
  """The channels after the first c: their weights have no gradient."""
  module = TINY.clone(learns_variance=True)
  variables = perturbed(module)
  loss = lambda v: (module.apply(v, *inputs()) ** 2).sum()
  grads = jax.jit(jax.grad(loss))(variables)
  last = np.reshape(grads["params"]["proj_out"]["kernel"], (16, 4, 6))
  assert np.all(np.any(last[..., :3], axis=0))
  assert not np.any(last[..., 3:])
  kept = jax.tree.map(np.asarray, variables["params"]["proj_out"])
  mean = {
    "kernel": kept["kernel"].reshape(16, 4, 6)[..., :3].reshape(16, 12),
    "bias": kept["bias"].reshape(4, 6)[:, :3].reshape(12),
  }
  mean = jax.device_put(mean)
  alone = {"params": variables["params"] | {"proj_out": mean}}
  found = applying(module)(variables, *inputs())
  expected = applying(TINY)(alone, *inputs())
  np.testing.assert_allclose(found, expected, atol=1e-6)


def test_sincos_positions_distinguish_all_patches():
  """Their products depend on the differences of rows and columns alone."""
  found = sincos_positions((3, 5), 32, None)
  products = found @ found.T
  rows, columns = np.divmod(np.arange(15), 5)
  seen = {}
  for i in range(15):
    for j in range(15):
      key = abs(rows[i] - rows[j]), abs(columns[i] - columns[j])
      seen.setdefault(key, []).append(products[i, j])
  for values in seen.values():
    np.testing.assert_allclose(values, values[0], atol=1e-4)
  assert all(values[0] < 16 - 1e-3 for key, values in seen.items() if any(key))
  # The first half of the features is of the column.
  np.testing.assert_array_equal(found[0, :16], found[5, :16])
  np.testing.assert_array_equal(found[0, 16:], found[1, 16:])


def test_positions_of_another_size_span_the_same_range():
  assert axis_positions(4, 4) == axis_positions(4, None) == [0, 1, 2, 3]
  assert axis_positions(8, 4) == [i / 2 for i in range(8)]
  small, large = sincos_positions((2, 2), 8, 2), sincos_positions((4, 4), 8, 2)
  every_second = large.reshape(4, 4, 8)[::2, ::2].reshape(4, 8)
  np.testing.assert_allclose(every_second, small)


def test_rotations_keep_lengths_and_depend_on_differences():
  rng = np.random.default_rng(0)
  q, k = rng.standard_normal((2, 8)).astype(np.float32)
  angles = rotary_angles((3, 4), 8, None, registers=1)
  each = lambda x: rotate(jnp.broadcast_to(x, (1, 13, 1, 8)), angles)[0, :, 0]
  turned_q, turned_k = each(q), each(k)
  np.testing.assert_array_equal(turned_q[0], q)  # a register
  np.testing.assert_allclose(
    np.linalg.norm(turned_q, axis=-1), np.linalg.norm(q), rtol=1e-5
  )
  scores = turned_q[1:] @ turned_k[1:].T
  for step in (1, 4, 5):  # a column, a row, both
    pairs = [
      scores[i, i + step] for i in range(12 - step) if i % 4 + step % 4 < 4
    ]
    np.testing.assert_allclose(pairs, pairs[0], rtol=1e-4, atol=1e-4)


def test_concatenated_channels_join_the_patches():
  xt, t, condition = inputs()
  both = jnp.concatenate([xt, 2 * xt], axis=-1)
  variables = random_variables(TINY, both, t, condition)
  concat = Condition(vector=condition.vector, concat=2 * xt)
  np.testing.assert_array_equal(
    applying(TINY)(variables, both, t, condition),
    applying(TINY)(variables, xt, t, concat),
  )


def test_inputs_that_do_not_fit_are_refused():
  xt, t, condition = inputs()
  with pytest.raises(ValueError, match="takes no context"):
    TINY.init(jax.random.key(0), xt, t, Condition(context=xt[:, 0]))
  with pytest.raises(ValueError, match="has 3 features"):
    TINY.init(jax.random.key(0), xt, t, Condition(vector=xt[:, 0, 0]))
  with pytest.raises(ValueError, match="multiples of 2"):
    TINY.init(jax.random.key(0), xt[:, :3], t, condition)
  with pytest.raises(ValueError, match="multiple of heads=3"):
    DiT(width=16, heads=3)
  with pytest.raises(ValueError, match="multiple of 4 features"):
    DiT(width=12, heads=2, positions="rope")


def test_a_config_comes_back():
  model = LatentDiffusion(
    PixelSpace(), MODERN, (ClassEmbedder(3, 16, joins="vector"),)
  )
  text = config_json.to_json(model)
  assert config_json.from_json(text) == model


# Of the released networks of patch 2, with learned variance. They include a
# table of 1,001 labels, which is the conditioner's here, and 256 positions,
# which are not parameters here.
COUNTS = {
  "S": 32_963_360,
  "B": 130_512_416,
  "L": 458_102_816,
  "XL": 675_129_632,
}


@pytest.mark.parametrize("size", SIZES)
def test_published_sizes(size):
  module = dit_of_size(size).clone(learns_variance=True)
  width = module.width
  variables = jax.eval_shape(
    module.init,
    jax.random.key(0),
    np.zeros((1, 32, 32, 4), np.float32),
    np.zeros((1,), np.float32),
    Condition(vector=np.zeros((1, width), np.float32)),
  )
  count = sum(leaf.size for leaf in jax.tree.leaves(variables))
  assert count + (1001 + 256) * width == COUNTS[size]


FLOW = Schedule("rectified_flow", steps=8)
SIT = TINY.clone(flow_steps=8)


def test_sit_sees_the_straight_line_and_predicts_the_velocity_back():
  """z = tau x0 + (1 - tau) eps at tau = 1 - s; -(x0 - eps) is the target."""
  x0, _, condition = inputs()
  noise = jax.random.normal(jax.random.key(5), x0.shape)
  variables = perturbed(TINY)
  for time in (0.0, 3.0, 7.0):
    t = jnp.full((2,), time)
    tau = 1 - (time + 1) / 8
    z = tau * x0 + (1 - tau) * noise
    raw = applying(TINY)(variables, z, jnp.full((2,), tau), condition)
    xt = q_sample(FLOW, x0, t, noise)
    found = applying(SIT)(variables, xt, t, condition)
    np.testing.assert_allclose(found, -raw, atol=2e-5)
    np.testing.assert_allclose(
      target("flow", FLOW, x0, t, noise), -(x0 - noise), atol=1e-6
    )


def test_ddim_with_sit_is_eulers_method_from_noise_to_data():
  """dz/dtau = network(z, tau), tau from 0 to 1, as SiT's own sampler has it."""
  noise, _, condition = inputs()
  variables = perturbed(TINY)
  raw = jax.jit(functools.partial(TINY.apply, variables))
  z = noise
  for tau in np.arange(8) / 8:
    z = z + raw(z, jnp.full((2,), tau, jnp.float32), condition) / 8
  model = LatentDiffusion(PixelSpace(), SIT, (), FLOW, "flow")
  params = Parameters({}, 1.0, {}, variables)
  plan = SamplerConfig(steps=8, timestep_spacing="trailing").plan(FLOW)
  keys = image_keys(jax.random.key(0), jnp.arange(2))
  denoise = model.denoiser(params, condition)
  found = jax.jit(lambda x: sample(denoise, x, plan.table, keys))(noise)
  scale = np.abs(z).max()
  np.testing.assert_allclose(found, z, atol=1e-3 * scale)
