"""Stage two's step, by identities."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import initial_like, random_like, random_variables

from ldm_jax.diffusion.guidance import ClassifierFreeGuidance
from ldm_jax.diffusion.loss import DenoisingLoss
from ldm_jax.diffusion.schedule import Schedule
from ldm_jax.latent_diffusion import LatentDiffusion
from ldm_jax.latents import measure_latent_scale
from ldm_jax.nn.autoencoder import Autoencoder, ConvStack
from ldm_jax.nn.conditioners.embedders import (
  ClassEmbedder,
  Condition,
  TextEmbedder,
  merge,
)
from ldm_jax.nn.encoders.text_encoder import TextEncoder
from ldm_jax.nn.unet import AttentionPlan, UNet, coordinates
from ldm_jax.pixels import to_float, to_uint8
from ldm_jax.runtime.optimizer import Optimizer, ema_update
from ldm_jax.training.denoiser import DenoiserTask, Frozen

TEXT = TextEmbedder(TextEncoder(20, 16, 1, 2, 8, length=6), (2, 3))
LABEL = ClassEmbedder(5, 16)
TASK = DenoiserTask(
  model=LatentDiffusion(
    first_stage=Autoencoder(
      ConvStack(8, (1, 2), 1, has_mid_attention=False, groups=4), 3
    ),
    unet=UNet(3, 16, (1,), 1, AttentionPlan((1,), heads=2), groups=4),
    conditioners=(TEXT, LABEL),
  ),
  optimizer=Optimizer(1e-3),
)


def draw(seed=0, count=8, side=8):
  rng = np.random.default_rng(seed)
  batch = {
    "image": rng.integers(0, 256, (count, side, side, 3), np.uint8),
    "tokens": rng.integers(4, 20, (count, 6), np.int32),
    "label": rng.integers(0, 5, count, np.int32),
  }
  return jax.device_put(batch)


def normal(seed=0, shape=(8, 4, 4, 3)):
  """x_t of a batch, as a rule."""
  rng = np.random.default_rng(seed)
  return jax.device_put(rng.standard_normal(shape, np.float32))


@functools.cache
def begin(task=TASK, seed=0):
  """State, frozen parameters and batch; what `init` makes zero is zero."""
  batch = draw(seed)
  shapes = task.frozen_shapes(batch)
  images = jax.device_put(np.zeros((8, 8, 8, 3), np.float32))
  first_stage = random_variables(task.model.first_stage, images, normal())
  frozen = Frozen(first_stage, jnp.float32(1.7))
  jax.tree.map(lambda a, b: a.shape == b.shape or 1 / 0, frozen, shapes)
  return initial_like(task.init, batch, frozen), frozen, batch


@functools.cache
def stepping(task):
  """The step, compiled once for equal tasks."""
  return jax.jit(task.step)


def perturbed(state):
  """The same state with random weights: outputs are not 0."""
  params = random_like(state.params, seed=9)
  return state.replace(params=params, ema=params)


@functools.cache
def loss_of(task):
  """The loss of a batch, compiled once for equal tasks."""
  return jax.jit(lambda *inputs: task._loss(*inputs).mean())


@functools.cache
def drawn(task):
  """The random numbers of a step, compiled once for equal tasks."""
  return jax.jit(task.draw)


@functools.cache
def unet_gradient(remat):
  """The gradient of a loss of the U-Net with rematerialisation as given."""
  inputs = normal(), jnp.arange(8.0)
  condition = Condition(normal(2, (8, 7, 16)))
  params = random_variables(TASK.model.unet, *inputs, condition)
  unet = TASK.model.unet.clone(remat=remat)
  loss = lambda params: jnp.square(
    unet.apply(params, *inputs, condition)
  ).mean()
  return jax.tree.map(np.asarray, jax.jit(jax.grad(loss))(params))


def test_an_initial_network_predicts_zero_at_loss_one():
  """Zero-initialised outputs: the first eps loss is E|eps|^2 = 1."""
  state, frozen, batch = begin()
  params = TASK.parameters(state.params, frozen)
  xt, t = normal(), jnp.arange(8.0)
  draws = drawn(TASK)(jax.random.key(3), batch)
  conditioned = jax.jit(
    lambda *inputs: TASK.model.predict(
      params, xt, t, TASK.model.condition(params, *inputs)
    )
  )
  no = jnp.zeros(8, bool)
  assert np.all(conditioned(batch, {"tokens": no, "label": no}) == 0)
  loss = loss_of(TASK)(state.params, frozen, batch, draws)
  np.testing.assert_allclose(loss, np.square(draws.noise).mean(), rtol=1e-5)


@pytest.mark.slow
def test_slices_of_a_batch_are_the_batch():
  state, frozen, batch = begin()
  state = perturbed(state)
  whole, metrics = stepping(TASK)(state, frozen, batch, jax.random.key(3))
  task = dataclasses.replace(TASK, accumulate=4)
  parts, same = stepping(task)(state, frozen, batch, jax.random.key(3))
  np.testing.assert_allclose(metrics["loss"], same["loss"], rtol=1e-5)
  for a, b in zip(
    jax.tree.leaves(whole.opt.inner[0].mu),
    jax.tree.leaves(parts.opt.inner[0].mu),
    strict=True,
  ):
    np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-7)


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_remat_changes_no_gradient(remat):
  ours, theirs = unet_gradient("off"), unet_gradient(remat)
  size = lambda tree: sum(np.vdot(x, x) for x in jax.tree.leaves(tree)) ** 0.5
  difference = jax.tree.map(np.subtract, ours, theirs)
  assert size(ours) > 0 and size(difference) / size(ours) < 1e-5


def test_bfloat16_computes_what_float32_does():
  state, frozen, batch = begin()
  state, key = perturbed(state), jax.random.key(3)
  unet = TASK.model.unet.clone(dtype="bfloat16")
  task = dataclasses.replace(
    TASK, model=dataclasses.replace(TASK.model, unet=unet)
  )
  inputs = state.params, frozen, batch, drawn(TASK)(key, batch)
  half, full = loss_of(task)(*inputs), loss_of(TASK)(*inputs)
  np.testing.assert_allclose(half, full, rtol=0.02)
  assert half != full
  after, _ = jax.eval_shape(task.step, state, frozen, batch, key)
  dtypes = {leaf.dtype for leaf in jax.tree.leaves(after.params)}
  assert dtypes == {jnp.dtype("float32")}


def test_the_first_stage_gets_no_gradient():
  state, frozen, batch = begin()
  state = perturbed(state)
  draws = drawn(TASK)(jax.random.key(3), batch)
  loss = lambda f: TASK._loss(state.params, f, batch, draws).mean()
  grads = jax.jit(jax.grad(loss))(frozen)
  assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(grads.first_stage))


def test_dropped_conditions_are_the_unconditional_ones():
  """A dropped, a negative and an empty prompt give the same condition."""
  state, frozen, batch = begin()
  params = TASK.parameters(perturbed(state).params, frozen)
  yes, no = jnp.ones(8, bool), jnp.zeros(8, bool)
  condition = jax.jit(TASK.model.condition)
  condition_of = lambda *raw: np.asarray(condition(params, *raw).context)
  dropped = condition_of(batch, {"tokens": yes, "label": yes})
  empty = batch | {
    "tokens": jax.device_put(np.tile(np.int32([2, 3, 0, 0, 0, 0]), (8, 1))),
    "label": jnp.full(8, 5),
  }
  np.testing.assert_array_equal(
    dropped, condition_of(empty, {"tokens": no, "label": no})
  )
  mixed = condition_of(batch, {"tokens": yes, "label": no})
  kept = condition_of(batch, {"tokens": no, "label": no})
  np.testing.assert_array_equal(mixed[:, 6:], kept[:, 6:])
  assert np.abs(mixed[:, :6] - kept[:, :6]).max() > 0
  assert mixed.shape == (8, 7, 16)


def test_drop_rates_are_kept():
  batch = {name: np.concatenate([rows] * 500) for name, rows in draw().items()}
  drop = jax.jit(lambda key: TASK.draw(key, batch).drop)(jax.random.key(0))
  drop = jax.tree.map(np.asarray, drop)
  for mask in drop.values():
    assert abs(float(mask.mean()) - 0.1) < 4.5 * (0.09 / 4000) ** 0.5
  both = float((drop["tokens"] & drop["label"]).mean())
  assert abs(both - 0.01) < 4.5 * (0.0099 / 4000) ** 0.5


def test_guidance_one_is_the_conditional_model():
  state, frozen, batch = begin()
  params = TASK.parameters(perturbed(state).params, frozen)
  yes, no = jnp.ones(8, bool), jnp.zeros(8, bool)
  condition_of = lambda drop: TASK.model.condition(
    params, batch, {"tokens": drop, "label": drop}
  )
  xt, level = normal(), TASK.model.schedule.level(jnp.float32(300))

  @jax.jit
  def estimates():
    """Of the network without guidance: conditional, null; then guided."""
    conditional, null = condition_of(no), condition_of(yes)
    plain = (
      TASK.model.denoiser(params, condition)(xt, level).eps
      for condition in (conditional, null)
    )
    guided = jax.vmap(
      lambda s: (
        TASK.model.guided_denoiser(
          params, null, conditional, ClassifierFreeGuidance(s)
        )(xt, level).eps
      )
    )
    return *plain, guided(jnp.float32([1, 0, 3]))

  alone, null, guided = map(np.asarray, estimates())
  np.testing.assert_allclose(guided[0], alone, atol=1e-5)
  np.testing.assert_allclose(guided[1], null, atol=1e-5)
  np.testing.assert_allclose(guided[2], null + 3 * (alone - null), atol=1e-4)


def test_the_average_warms_up_as_in_ldm():
  # (1 + n) / (10 + n): .181818, .25, .55, .918182 after 1, 2, 10, 100 updates.
  for n, decay in [(1, 0.181818), (2, 0.25), (10, 0.55), (100, 0.918182)]:
    found = ema_update(jnp.float32(1), jnp.float32(0), n, 0.9999)
    np.testing.assert_allclose(found, decay, rtol=1e-5)
  np.testing.assert_allclose(
    ema_update(jnp.float32(1), jnp.float32(0), 10**6, 0.9999), 0.9999
  )


def test_the_measured_scale_gives_unit_variance():
  _, frozen, _ = begin()
  batches = [draw(seed) for seed in range(4)]
  scale = measure_latent_scale(
    TASK.model.first_stage, frozen.first_stage, batches, jax.random.key(0)
  )
  params = TASK.parameters({"unet": 0, "conditioners": {}}, frozen)

  @jax.jit
  def latents_of(i, images):
    posterior = TASK.model.encode(params, to_float(images))
    key = jax.random.fold_in(jax.random.key(0), i)
    noise = jax.random.normal(key, posterior.mean.shape)
    return scale * posterior.sample(noise)

  latents = [latents_of(i, batch["image"]) for i, batch in enumerate(batches)]
  np.testing.assert_allclose(np.std(latents), 1.0, rtol=1e-3)


def test_decode_undoes_the_scale():
  state, frozen, batch = begin()
  params = TASK.parameters(state.params, frozen)

  @jax.jit
  def decoded():
    latents = TASK.model.encode(params, to_float(batch["image"])).mode()
    direct = TASK.model.first_stage.apply(
      frozen.first_stage, latents, method="decode"
    )
    return TASK.model.decode(params, params.latent_scale * latents), direct

  scaled, direct = decoded()
  np.testing.assert_allclose(scaled, direct, atol=1e-5)


def test_bytes_and_floats():
  every = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
  floats = to_float(jax.device_put(every))
  np.testing.assert_array_equal(to_uint8(floats), every)
  assert np.min(floats) == -1 and np.max(floats) == 1
  wild = jnp.full((1, 1, 1, 3), 7.0)
  assert np.all(to_uint8(wild) == 255) and np.all(to_uint8(-wild) == 0)


def test_contradictions_are_refused():
  with pytest.raises(ValueError, match="the loss is of 'v'"):
    DenoiserTask(loss=DenoisingLoss("v"))
  with pytest.raises(ValueError, match="zero_terminal_snr"):
    LatentDiffusion(schedule=Schedule(zero_terminal_snr=True))
  with pytest.raises(ValueError, match="read the same array"):
    LatentDiffusion(conditioners=(LABEL, ClassEmbedder(3, 4)))
  with pytest.raises(ValueError, match="widths"):
    merge([Condition(jnp.zeros((1, 1, 2))), Condition(jnp.zeros((1, 1, 3)))])


def test_an_initial_text_encoder_is_the_identity():
  encoder = TextEncoder(20, 16, 2, 2, 8, length=6)
  tokens = draw()["tokens"]
  params = initial_like(encoder.init, tokens)
  changed = np.array(tokens)
  changed[:, 2] = (changed[:, 2] + 1) % 20
  encode = jax.jit(encoder.apply)
  before, after = (np.asarray(encode(params, x)) for x in (tokens, changed))
  same = [0, 1, 3, 4, 5]
  np.testing.assert_array_equal(after[:, same], before[:, same])
  assert np.all(np.abs(after[:, 2] - before[:, 2]).max(axis=-1) > 0.1)


def test_pooled_text_is_a_normalised_vector_next_to_the_tokens():
  pooled = TEXT.clone(is_pooled=True)
  tokens, drop = draw()["tokens"], jnp.arange(8) % 2 == 0
  params = initial_like(pooled.init, tokens, drop)
  apply = jax.jit(pooled.apply)
  vector = np.asarray(apply(params, tokens, drop).vector)
  np.testing.assert_allclose(vector.mean(-1), 0, atol=1e-6)
  np.testing.assert_allclose(vector.var(-1), 1, rtol=1e-2)
  null = np.asarray(apply(params, tokens, jnp.ones(8, bool)).vector)
  np.testing.assert_allclose(vector[::2], null[::2], atol=1e-6)
  assert np.abs(vector - null)[1::2].max(-1).min() > 0.1


def test_coordinates_run_from_the_first_pixel_to_the_last():
  waves = np.asarray(coordinates(jnp.ones((2, 3, 5, 4)), 2))
  assert waves.shape == (2, 3, 5, 8)
  row, column = np.array([-1, 0, 1]), np.array([-1, -0.5, 0, 0.5, 1])
  for u, mine in ((row, waves[1, :, 4, :4]), (column, waves[0, 2, :, 4:])):
    angle = np.pi / 2 * u[:, None] * [1, 2]
    expected = np.concatenate([np.sin(angle), np.cos(angle)], axis=1)
    np.testing.assert_allclose(mine, expected, atol=1e-6)


@pytest.mark.parametrize("octaves", [0, 2])
def test_coordinates_distinguish_equal_pixels(octaves):
  flat, t = jnp.ones((1, 28, 28, 3)), jnp.zeros(1)
  plan = AttentionPlan((0,), mid_depth=0, heads=1)
  unet = UNet(3, 8, (1,), 1, plan, groups=1, octaves=octaves)
  params = random_variables(unet, flat, t, Condition())
  answer = np.asarray(jax.jit(unet.apply)(params, flat, t, Condition()))
  # Twelve convolutions lie between x_t and the output: no padding is in reach.
  spread = answer[0, 13:15, 13:15].std(axis=(0, 1)).max()
  assert spread > 1e-3 if octaves else spread < 1e-5


def test_the_held_out_loss_at_given_times_is_their_mean():
  """Each is the loss of the same noise at that time; 0 is the image itself."""
  flow = dataclasses.replace(
    TASK,
    model=dataclasses.replace(
      TASK.model, schedule=Schedule("rectified_flow"), prediction="flow"
    ),
    loss=DenoisingLoss("flow"),
  )
  times = (0.0, 0.5, 1.0)
  task = dataclasses.replace(flow, validation_times=times)
  state, frozen, batch = begin(flow)
  state, key = perturbed(state), jax.random.key(5)
  found = jax.jit(task.measure)(state, frozen, batch, key)
  assert {*found} == {"loss", *(f"loss_at_{s:g}" for s in times)}
  losses = np.array([found[f"loss_at_{s:g}"] for s in times])
  np.testing.assert_allclose(found["loss"], losses.mean(), rtol=1e-6)
  assert len(set(losses)) == len(times)
  draws = drawn(flow)(key, batch)
  draws = draws._replace(drop=jax.tree.map(np.zeros_like, draws.drop))
  for s, loss in zip(times, losses, strict=True):
    t = jnp.full(8, 1000 * s - 1)
    inputs = state.ema, frozen, batch, draws._replace(t=t)
    np.testing.assert_allclose(loss_of(flow)(*inputs), loss, rtol=1e-5)


def test_without_a_moving_average_none_is_kept():
  """What is measured and previewed are the parameters."""
  task = dataclasses.replace(TASK, ema_decay=None)
  state, frozen, batch = begin()
  key = jax.random.key(0)
  found = jax.eval_shape(task.init, key, batch, frozen)
  assert found.ema is None and found.trained is found.params
  after, _ = jax.eval_shape(task.step, found, frozen, batch, key)
  assert jax.tree.structure(after) == jax.tree.structure(found)
  assert state.trained is state.ema
  alone = state.replace(ema=None)
  assert alone.trained is alone.params
  for function in (task.measure, task.preview):
    assert jax.eval_shape(function, found, frozen, batch, key)
  assert ema_update(None, 1.0, 3, None) is None
