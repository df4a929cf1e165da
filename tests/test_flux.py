"""FLUX: packing, rotations, identity at initialisation, options, its time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import initial_like, random_like, random_variables

from ldm_jax import config_json
from ldm_jax.diffusion.schedule import Schedule, q_sample
from ldm_jax.latent_diffusion import LatentDiffusion
from ldm_jax.nn.autoencoder import PixelSpace
from ldm_jax.nn.conditioners.embedders import ClassEmbedder, Condition
from ldm_jax.nn.flux.flux import Flux
from ldm_jax.nn.flux.packing import pack, unpack
from ldm_jax.nn.flux.positions import rotary_cos_sin, rotate_pairs
from ldm_jax.nn.operators.quantized_array import (
  apply,
  has_quantized,
  is_quantized,
  map_parameters,
)
from ldm_jax.pretrained.quantizer import quantized

TINY = Flux(3, 16, 1, 2, 2, (2, 2, 4), flow_steps=8)


def inputs(b=2, height=4, width=6):
  """(x_t, t, condition), all different in every image."""
  draw = np.random.default_rng(0).standard_normal
  shapes = (height, width, 3), (5, 12), (10,), ()
  xt, context, vector, guidance = (
    jnp.asarray(draw((2, *shape)), jnp.float32)[:b] for shape in shapes
  )
  condition = Condition(
    context=context, vector=vector, guidance=3 + jnp.abs(guidance)
  )
  return xt, jnp.arange(1.0, b + 1), condition


@functools.cache
def perturbed(module):
  """Variables of which none is zero."""
  return random_variables(module, *inputs())


@functools.cache
def applying(module):
  """The network, compiled once for equal shapes."""
  return jax.jit(module.apply)


def test_unpack_inverts_pack_and_tokens_of_channels_are_concatenated():
  x = jnp.arange(2 * 6 * 4 * 3.0).reshape(2, 6, 4, 3)
  tokens = pack(x)
  assert tokens.shape == (2, 6, 12)
  np.testing.assert_array_equal(tokens[1, 3, 4:8], x[1, 2:4, 2:4, 1].ravel())
  np.testing.assert_array_equal(unpack(tokens, (3, 2)), x)
  both = pack(jnp.concatenate([x, 2 * x], axis=-1))
  np.testing.assert_array_equal(
    both, jnp.concatenate([tokens, 2 * tokens], axis=-1)
  )
  with pytest.raises(ValueError, match="multiples of 2"):
    pack(x[:, :5])


def test_rotations_keep_lengths_and_depend_on_differences():
  rng = np.random.default_rng(0)
  q, k = rng.standard_normal((2, 8)).astype(np.float32)
  cos_sin = rotary_cos_sin(2, (3, 4), (2, 2, 4))
  assert cos_sin.shape == (2, 14, 4)
  each = lambda x: rotate_pairs(jnp.broadcast_to(x, (1, 14, 1, 8)), cos_sin)
  rotated_q, rotated_k = (each(x)[0, :, 0] for x in (q, k))
  for token in (0, 1, 2):  # text, and the first patch
    np.testing.assert_array_equal(rotated_q[token], q)
  np.testing.assert_array_equal(
    rotated_q[:, :2], rotated_q[:1, :2].repeat(14, 0)
  )
  np.testing.assert_allclose(
    np.linalg.norm(rotated_q, axis=-1), np.linalg.norm(q), rtol=1e-5
  )
  scores = rotated_q[2:] @ rotated_k[2:].T
  for step in (1, 4, 5):  # a column, a row, both
    pairs = [
      scores[i, i + step] for i in range(12 - step) if i % 4 + step % 4 < 4
    ]
    np.testing.assert_allclose(pairs, pairs[0], rtol=1e-4, atol=1e-4)
    assert abs(pairs[0] - scores[0, 0]) > 1e-3


def test_a_new_network_outputs_zero():
  variables = initial_like(TINY.init, *inputs())
  out = applying(TINY)(variables, *inputs())
  assert out.shape == (2, 4, 6, 3) and out.dtype == jnp.float32
  assert not np.any(out)
  for name in ("double_0", "single_1"):
    block = variables["params"][name]
    for kernel in jax.tree.leaves(
      [block.get(n, block)["modulation"] for n in ("text", "image")]
    ):
      assert not np.any(kernel)


def test_scan_and_remat_change_nothing_and_gradients_are_finite():
  variables = perturbed(TINY)

  def value_and_grads(module):
    loss = lambda *args: (module.apply(*args) ** 2).mean()
    return jax.jit(jax.value_and_grad(loss))(variables, *inputs())

  plain = value_and_grads(TINY)
  scanned = value_and_grads(TINY.clone(is_scanned=True, remat="full"))
  for one, other in zip(*map(jax.tree.leaves, (plain, scanned)), strict=True):
    assert np.all(np.isfinite(one)) and np.any(one)
    scale = max(1, float(np.abs(other).max()))
    np.testing.assert_allclose(one, other, atol=1e-5 * scale)


def test_every_image_depends_on_its_own_inputs_alone():
  xt, t, condition = inputs()
  apply = functools.partial(applying(TINY), perturbed(TINY))
  both = apply(xt, t, condition)
  second = jax.tree.map(lambda x: x[1:], condition)
  alone = apply(xt[1:], t[1:], second)
  scale = np.abs(both).max()
  np.testing.assert_allclose(both[1:], alone, atol=1e-5 * scale)
  for other in (
    (xt, t + 5, condition),
    (xt, t, condition.replace(vector=condition.vector + 1)),
    (xt, t, condition.replace(context=condition.context + 1)),
    (xt, t, condition.replace(guidance=condition.guidance + 1)),
    (xt[:, ::-1], t, condition),
  ):
    assert np.abs(apply(*other) - both).max() > 1e-3 * scale


def test_the_order_of_the_text_does_not_matter():
  """All of its tokens have the position 0."""
  xt, t, condition = inputs()
  apply = functools.partial(applying(TINY), perturbed(TINY), xt, t)
  other = condition.replace(context=condition.context[:, ::-1])
  out = apply(condition)
  scale = np.abs(out).max()
  np.testing.assert_allclose(apply(other), out, atol=1e-5 * scale)


def test_a_condition_without_guidance_has_the_scale_1():
  xt, t, condition = inputs()
  apply = functools.partial(applying(TINY), perturbed(TINY), xt, t)
  np.testing.assert_array_equal(
    apply(condition.replace(guidance=None)),
    apply(condition.replace(guidance=jnp.ones(2))),
  )


@pytest.mark.parametrize("is_scanned", [False, True])
def test_matrices_in_8_bits_are_read(is_scanned):
  """In a scan too, where those of all blocks are one array."""
  module = TINY.clone(is_scanned=is_scanned)

  def rounded(leaf):
    if leaf.ndim < 2:
      return leaf
    return quantized(np.asarray(leaf), "int8", "float32")[0]

  params = jax.tree.map(rounded, perturbed(TINY))
  assert has_quantized(params)
  wide = map_parameters(
    lambda leaf: leaf.unbox() if is_quantized(leaf) else leaf, params
  )
  found = jax.jit(functools.partial(apply, module))(params, *inputs())
  expected = applying(TINY)(wide, *inputs())
  scale = np.abs(expected).max()
  np.testing.assert_allclose(found, expected, atol=1e-5 * scale)


def test_the_network_sees_the_straight_line():
  """z = (1 - s) x0 + s eps at s = (t + 1) / T, whatever x_t's own scale."""
  x0, _, condition = inputs()
  noise = random_like(jax.eval_shape(lambda: x0), seed=5)
  variables = perturbed(TINY)
  for steps in (8, 4):
    t = jnp.full((2,), 0.5 * steps - 1)  # s = 0.5
    xt = q_sample(Schedule("rectified_flow", steps=steps), x0, t, noise)
    module = TINY.clone(flow_steps=steps)
    found = applying(module)(variables, xt, t, condition)
    z = 0.5 * x0 + 0.5 * noise
    np.testing.assert_allclose(xt * 0.5**0.5, z, atol=1e-6)
    if steps == 8:
      first = found
  np.testing.assert_allclose(found, first, atol=1e-4 * np.abs(first).max())


def test_bfloat16_is_near_and_returns_float32():
  exact = applying(TINY)(perturbed(TINY), *inputs())
  half = TINY.clone(dtype="bfloat16")
  out = applying(half)(perturbed(TINY), *inputs())
  assert out.dtype == jnp.float32
  assert np.abs(out - exact).max() < 0.1 * np.abs(exact).max()


def test_concatenated_channels_join_the_patches():
  """They are not scaled as x_t is."""
  xt, t, condition = inputs()
  t = jnp.full((2,), 7.0)  # s = 1
  both = jnp.concatenate([xt, 2 * xt], axis=-1)
  variables = random_variables(TINY, both, t, condition)
  concat = condition.replace(concat=2 * xt)
  np.testing.assert_array_equal(
    applying(TINY)(variables, both, t, condition),
    applying(TINY)(variables, xt, t, concat),
  )


def test_inputs_that_do_not_fit_are_refused():
  xt, t, condition = inputs()
  for name in ("context", "vector"):
    with pytest.raises(ValueError, match=f"no {name}"):
      other = condition.replace(**{name: None})
      TINY.init(jax.random.key(0), xt, t, other)
  with pytest.raises(ValueError, match="ControlNets"):
    TINY.init(jax.random.key(0), xt, t, condition.replace(residuals=xt))
  with pytest.raises(ValueError, match="multiples of 2"):
    TINY.init(jax.random.key(0), xt[:, :3], t, condition)
  with pytest.raises(ValueError, match="multiple of heads=3"):
    Flux(width=16, heads=3)
  for axes in ((2, 2, 2), (1, 3, 4), (4, 4)):
    with pytest.raises(ValueError, match="three even numbers"):
      Flux(width=16, heads=2, axes=axes)


def test_a_config_comes_back_and_guidance_takes_no_second_call():
  labels = ClassEmbedder(3, 16, joins="both")
  process = {"schedule": Schedule("rectified_flow", steps=8)}
  process["prediction"] = "flow"
  model = LatentDiffusion(PixelSpace(), TINY, (labels,), **process)
  assert config_json.from_json(config_json.to_json(model)) == model
  assert model.embeds_guidance and not model.unconditional_keys
  schnell = LatentDiffusion(
    PixelSpace(), TINY.clone(embeds_guidance=False), (labels,), **process
  )
  assert not schnell.embeds_guidance and schnell.unconditional_keys


def test_fill_has_the_size_of_dev_and_of_its_channels():
  """Black Forest Labs' files; dev and schnell are among the experiments."""
  variables = jax.eval_shape(
    Flux().init,
    jax.random.key(0),
    np.zeros((1, 2, 2, 16 + 16 + 64), np.float32),
    np.zeros((1,), np.float32),
    Condition(
      context=np.zeros((1, 1, 4096), np.float32),
      vector=np.zeros((1, 768), np.float32),
    ),
  )
  count = sum(leaf.size for leaf in jax.tree.leaves(variables))
  assert count == 11_901_408_320 + 4 * (16 + 64) * 3072
