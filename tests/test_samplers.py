"""Samplers by the identities that define them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sampler_rows import (
  LINE,
  MEANS,
  WEIGHTS,
  follow,
  mixture,
  mixture_eps,
  solve,
)

from ldm_jax.diffusion import samplers
from ldm_jax.diffusion.samplers import (
  SAMPLERS,
  SamplerConfig,
  registry,
  sampler_names,
  sampler_table,
  timesteps,
  unipc,
)
from ldm_jax.diffusion.samplers.sampler_names import SPACING_NAMES
from ldm_jax.diffusion.samplers.solver_options import SolverOptions
from ldm_jax.diffusion.schedule import Schedule

SCHEDULE = Schedule()
SHAPE = (2, 4, 4, 3)
KEYS = samplers.image_keys(jax.random.key(0), jnp.arange(2))
SPACINGS = [name for name in SPACING_NAMES if name != "lcm"]
BY_TIME = [name for name in SPACINGS if name not in timesteps.BY_RATIO]
RNG = np.random.default_rng(7)
X0, NOISE = RNG.standard_normal((2, *SHAPE))
NOISES = RNG.standard_normal((3100, 3))
COUNTS = (1, 2, 3, 4, 5, 6, 7, 13, 14, 15, 16, 50)


def consistent(x0, xt, level):
  """An estimate of x0, with the eps that follows from x_t."""
  return x0, (xt - level.signal * x0) / level.sigma


def smooth(xt, level):
  """Some smooth denoiser."""
  return consistent(jnp.tanh(xt + level.sigma), xt, level)


def with_oracle(sampler_config, schedule=SCHEDULE):
  """The final x of a sampler whose network returns the true x0."""
  plan = sampler_config.plan(schedule)
  first = jax.tree.map(lambda x: x[0], plan.table.level)
  x0, noise = X0[0, 0, 0], NOISE[0, 0, 0]
  oracle = lambda xt, level: consistent(x0, xt, level)
  xt = first.signal * x0 + first.sigma * noise
  return follow(plan.table, xt, oracle, NOISES), x0, noise


@pytest.mark.parametrize("name", sorted({*SAMPLERS} - {"lcm", "unipc_bh2"}))
def test_with_an_oracle_the_result_is_x0_for_any_steps_and_spacing(name):
  """101 and 333 steps with a spacing each, in rotation over the samplers."""
  place = sorted(SAMPLERS).index(name)
  long = {place % len(SPACINGS): 101, (place + 1) % len(SPACINGS): 333}
  for number, timestep_spacing in enumerate(SPACINGS):
    most = [long[number]] if number in long else []
    check_with_an_oracle(name, timestep_spacing, [*COUNTS, *most])


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*SAMPLERS} - {"lcm", "unipc_bh2"}))
def test_with_an_oracle_many_steps_are_right_with_every_spacing(name):
  for timestep_spacing in SPACINGS:
    check_with_an_oracle(name, timestep_spacing, (101, 333))


def check_with_an_oracle(name, timestep_spacing, counts):
  for steps in counts:
    found, x0, _ = with_oracle(SamplerConfig(steps, name, timestep_spacing))
    case = f"{timestep_spacing} {steps}"
    np.testing.assert_allclose(found, x0, atol=1e-6, err_msg=case)


@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m", "plms"])
def test_with_an_oracle_the_result_is_x0_for_every_number_of_steps(name):
  """LDM's own sampler fails for 599 steps."""
  for steps in [*range(1, 60), *range(60, 1001, 47)]:
    found, x0, _ = with_oracle(SamplerConfig(steps, name))
    np.testing.assert_allclose(found, x0, atol=1e-9, err_msg=str(steps))


@pytest.mark.parametrize("name", ["lcm", "tcd"])
def test_with_an_oracle_distilled_samplers_return_x0(name):
  for steps in range(1, 51):
    found, x0, _ = with_oracle(SamplerConfig(steps, name))
    # LCM mixes some of x in, 7e-6 of it at its last time.
    np.testing.assert_allclose(found, x0, atol=5e-5, err_msg=str(steps))


@pytest.mark.parametrize("name", ["ddim", "plms", "pndm_prk"])
def test_samplers_that_stop_early_stop_at_the_first_time(name):
  """alpha-bar of time 0 is what Stable Diffusion's DDIM and PNDM end with."""
  for steps in (1, 3, 7, 50):
    found, x0, noise = with_oracle(SamplerConfig(steps, name, final_time=0.0))
    first = SCHEDULE.level_at(0)
    np.testing.assert_allclose(first.signal**2, SCHEDULE.alpha_bar[0])
    # A deterministic path with the true x0 keeps its noise.
    expected = first.signal * x0 + first.sigma * noise
    np.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "lcm"])
def test_pure_noise_at_the_last_time_does_not_divide_by_zero(name):
  schedule = Schedule(zero_terminal_snr=True)
  for steps in (1, 2, 20):
    found, x0, _ = with_oracle(SamplerConfig(steps, name, "trailing"), schedule)
    np.testing.assert_allclose(found, x0, atol=1e-5, err_msg=str(steps))


@pytest.mark.parametrize("kind", ["rectified_flow", "zero"])
@pytest.mark.parametrize(
  "name", [n for n in SAMPLERS if not SamplerConfig(sampler=n).is_random]
)
def test_from_pure_noise_small_errors_of_a_network_stay_small(name, kind):
  """No sampler multiplies them by sigma / signal, which has no bound there."""
  is_flow = kind == "rectified_flow"
  schedule = Schedule(kind) if is_flow else Schedule(zero_terminal_snr=True)

  def exact(xt, level):
    if level.signal == 0:
      return consistent(np.full_like(xt, WEIGHTS @ MEANS), xt, level)
    return mixture(xt, level)

  def nearly(xt, level):
    x0, _ = exact(xt, level)
    return consistent(x0 + 1e-3 * np.sin(50 * xt), xt, level)

  fine = SamplerConfig(1000, "ddim", "trailing").plan(schedule).table
  true = follow(fine, LINE, exact)
  for timestep_spacing in ("trailing", "karras"):
    table = SamplerConfig(40, name, timestep_spacing).plan(schedule).table
    found = follow(table, LINE, nearly)
    best = follow(table, LINE, exact)
    assert np.abs(found - best).max() < 0.02, timestep_spacing
    if timestep_spacing == "trailing":
      assert np.abs(best - true).max() < 0.1


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_scan_follows_the_rows(name):
  """Jitted, in float32 and in chunks, it gives what the rows define."""
  table = SamplerConfig(13, name, eta=None).plan(SCHEDULE).table
  noises = [
    samplers.normal(
      jax.vmap(jax.random.fold_in, (0, None))(KEYS, 1 + i), SHAPE[1:]
    )
    for i in range(len(table.index))
  ]
  expected = follow(table, NOISE, smooth, np.asarray(noises, np.float64))
  state = samplers.init_registers(jnp.asarray(NOISE))
  for piece in samplers.split_table(table):
    state = run_chunk(state, piece)
  np.testing.assert_allclose(
    state[0], expected, atol=2e-4 * np.abs(expected).max()
  )


traces = []


@jax.jit
def run_chunk(state, piece):
  traces.append(1)
  return samplers.run(smooth, state, piece, KEYS)


def test_no_option_of_a_sampler_recompiles():
  run_chunk(
    samplers.init_registers(jnp.asarray(NOISE)), next(pieces(SamplerConfig()))
  )
  traces.clear()
  for sampler_config in (
    SamplerConfig(1, eta=0.3),
    SamplerConfig(20, "heun", "karras"),
    SamplerConfig(37, "unipc", order=3),
    SamplerConfig(sampler="dpmpp_2m_sde", times=(900, 500, 3.5)),
    SamplerConfig(7, "lms", compat="diffusers"),
  ):
    state = samplers.init_registers(jnp.asarray(NOISE))
    for piece in pieces(sampler_config):
      state = run_chunk(state, piece)
  assert not traces


def pieces(sampler_config):
  return samplers.split_table(sampler_config.plan(SCHEDULE).table)


# The same algorithm under two names, or by an option.
EQUAL_SAMPLERS = [
  (SamplerConfig(20, "ddim", "karras"), SamplerConfig(20, "euler", "karras")),
  (SamplerConfig(20, "ddim", eta=1.0), SamplerConfig(20, "ddpm")),
  (
    SamplerConfig(20, "ddim", "trailing", eta=0.6),
    SamplerConfig(20, "euler_ancestral", "trailing", eta=0.6),
  ),
  (SamplerConfig(20, "dpm2"), SamplerConfig(20, "dpm2_ancestral", eta=0.0)),
  (SamplerConfig(20, "dpmpp_2m"), SamplerConfig(20, "dpmpp_2m_sde", eta=0.0)),
  (
    SamplerConfig(20, "lms", "karras", order=1),
    SamplerConfig(20, "euler", "karras"),
  ),
  (SamplerConfig(20, "deis", order=1), SamplerConfig(20, "euler")),
]


@pytest.mark.parametrize("pair", EQUAL_SAMPLERS)
def test_samplers_with_two_names_are_equal(pair):
  found = [
    follow(
      each.plan(SCHEDULE).table,
      NOISE,
      mixture,
      np.tile(NOISES[:, None, None, None], (1, *SHAPE[:3], 1)),
    )
    for each in pair
  ]
  np.testing.assert_allclose(*found, atol=1e-9)


# (sampler, order of its own): the order of convergence.
ORDERS = [
  (SamplerConfig(sampler="ddim"), 1),
  (SamplerConfig(sampler="euler"), 1),
  (SamplerConfig(sampler="heun"), 2),
  (SamplerConfig(sampler="dpm2"), 2),
  (SamplerConfig(sampler="dpmpp_2m"), 2),
  (SamplerConfig(sampler="dpmpp_2m", options=SolverOptions(False)), 2),
  # Its first step is of order 1, the second of order 2.
  (SamplerConfig(sampler="dpmpp_2m", order=3), 2),
  (SamplerConfig(sampler="dpmpp_2m", options=SolverOptions(True, "heun")), 2),
  (SamplerConfig(sampler="dpmpp_2s"), 2),
  (SamplerConfig(sampler="dpmpp_3s"), 3),
  (SamplerConfig(sampler="deis", order=2), 2),
  (SamplerConfig(sampler="unipc", order=1), 2),
  (SamplerConfig(sampler="unipc", order=2), 3),
  (SamplerConfig(sampler="unipc_bh1", order=2), 3),
]
HALVED = [40, 80, 160, 320, 640]


@pytest.fixture(scope="module")
def solution():
  """Of the ODE between the schedule's ends, and Euler's step to the image."""
  high, low = (SCHEDULE.level_at(t) for t in (999, 0))
  x = solve(LINE / high.signal, high.ratio, low.ratio)
  return x - low.ratio * mixture_eps(x, low.ratio)


def slope(make_table, solution):
  """Of ln error over ln 1/steps, by least squares."""
  errors = [
    np.sqrt(np.mean((follow(make_table(n), LINE, mixture) - solution) ** 2))
    for n in HALVED
  ]
  return -np.polyfit(np.log(HALVED), np.log(errors), 1)[0]


@pytest.mark.parametrize("sampler_config, order", ORDERS)
def test_order_of_convergence(sampler_config, order, solution):
  """A mixture of Gaussians in closed form, even steps in ln SNR, float64.

  UniPC's corrector adds one to its order (Zhao et al. 2023, theorem 3.1).
  """

  def table_of(steps):
    config = dataclasses.replace(
      sampler_config, steps=steps, timestep_spacing="exponential"
    )
    return config.plan(SCHEDULE).table

  found = slope(table_of, solution)
  assert abs(found - order) < 0.1, found


@pytest.mark.parametrize("name", ["unipc", "unipc_bh1"])
def test_order_of_unipc_three(name, solution):
  """3, limited by the first step of order 2; seen with very small steps."""
  high, low = (np.log(SCHEDULE.level_at(t).ratio) for t in (999, 0))
  errors = []
  for steps in (2560, 5120):
    ratios = tuple(np.exp(np.linspace(high, low, steps)))
    sampler_config = SamplerConfig(sampler=name, order=3, sigmas=ratios)
    found = follow(sampler_config.plan(SCHEDULE).table, LINE, mixture)
    errors.append(np.sqrt(np.mean((found - solution) ** 2)))
  assert abs(np.log2(errors[0] / errors[1]) - 3) < 0.1, errors


@pytest.mark.parametrize("order", [1, 2])
def test_order_of_the_predictor_alone(order, solution):
  def table_of(steps):
    levels = timesteps.noise_levels(SCHEDULE, steps, "exponential")
    alone = SolverOptions(disable_corrector=tuple(range(steps)))
    return samplers.stack(list(unipc.unipc(levels, order, options=alone)))

  assert abs(slope(table_of, solution) - order) < 0.1


@pytest.mark.parametrize(
  "sampler_config, order",
  [
    (SamplerConfig(sampler="ddpm"), 1),
    (SamplerConfig(sampler="ddim", eta=1.0), 1),
    (SamplerConfig(sampler="ddim", eta=0.5), 1),
    (SamplerConfig(sampler="euler_ancestral"), 1),
    (SamplerConfig(sampler="dpm2_ancestral"), 2),
    (SamplerConfig(sampler="dpmpp_2m_sde"), 2),
  ],
)
def test_moments_of_stochastic_samplers(sampler_config, order):
  """Exact denoiser of N(0.5, 0.3^2): mean and deviation without sampling.

  Everything is linear, so unit vectors for x_T and for each noise give the
  resulting Gaussian. The last step returns E[x0 | x], which is narrower.
  """
  std, mean = 0.3, 0.5

  def exact(xt, level):
    gain = level.signal * std**2 / ((level.signal * std) ** 2 + level.sigma**2)
    return consistent(mean + gain * (xt - level.signal * mean), xt, level)

  last = SCHEDULE.level_at(0).ratio
  narrow = std * np.sqrt(std**2 / (std**2 + last**2))
  errors = []
  for steps in (100, 200, 400):
    plan = dataclasses.replace(
      sampler_config, steps=steps, timestep_spacing="exponential"
    ).plan(SCHEDULE)
    first = SCHEDULE.level_at(999)
    unit = np.eye(len(plan.table.index) + 2)
    deviation = np.sqrt((first.signal * std) ** 2 + first.sigma**2)
    xt = first.signal * mean + deviation * unit[1]
    found = follow(plan.table, xt, exact, unit[2:])
    np.testing.assert_allclose(found[0], mean, atol=1e-9)
    errors.append(abs(np.sqrt(np.sum((found[1:] - found[0]) ** 2)) - narrow))
  assert errors[-1] < 0.003
  rates = np.log2(np.array(errors[:-1]) / errors[1:])
  assert np.all(abs(rates - order) < 0.35), rates


def test_inversion_returns_to_the_noise_it_came_from():
  """Sampling and inversion with many steps: two Euler methods of order 1."""
  noise = np.linspace(-1.8, 1.8, 13)
  errors = []
  for steps in (100, 200, 400):
    sampler_config = SamplerConfig(steps, "ddim", "exponential")
    x0 = follow(sampler_config.plan(SCHEDULE).table, noise, mixture)
    up = sampler_config.inversion(SCHEDULE).table
    back = follow(up, x0, clean_mixture)
    errors.append(np.abs(back - noise).max())
  assert errors[2] < 0.05 and errors[2] < 0.6 * errors[1] < 0.36 * errors[0]


def clean_mixture(xt, level):
  """The mixture; at the image itself eps is the limit, 0."""
  if level.sigma == 0:
    return xt, np.zeros_like(xt)
  return mixture(xt, level)


def test_strength_takes_the_last_steps():
  sampler_config = SamplerConfig(50, "ddim")
  whole, part = (
    sampler_config.plan(SCHEDULE),
    sampler_config.plan(SCHEDULE, 0.8),
  )
  assert len(part.table.index) == 40
  np.testing.assert_array_equal(
    part.table.level.time, whole.table.level.time[10:]
  )
  with pytest.raises(ValueError, match="leaves none"):
    sampler_config.plan(SCHEDULE, 0.01)


def test_an_image_depends_on_its_index_and_not_on_its_batch():
  many = samplers.image_keys(jax.random.key(5), jnp.arange(16))
  alone = samplers.image_keys(jax.random.key(5), jnp.array([11]))
  table = SamplerConfig(5, eta=1.0).plan(SCHEDULE).table
  a, b = (
    samplers.sample(smooth, samplers.initial_noise(k, (8,)), table, k)
    for k in (many, alone)
  )
  np.testing.assert_allclose(a[11], b[0], atol=1e-6)


def test_published_ddim_steps():
  """x = 1 and eps = .5 through LDM's DDIMSampler formulas, SD's schedule."""

  def half(xt, level):
    eps = np.full_like(xt, 0.5)
    return (xt - level.sigma * eps) / level.signal, eps

  def at(t, s, eta):
    sampler_config = SamplerConfig(times=(t, s), eta=eta, final_time=-1.0)
    one = jax.tree.map(lambda x: x[:1], sampler_config.plan(SCHEDULE).table)
    return follow(one, np.ones(1), half)[0]

  np.testing.assert_allclose(at(981, 961, 0.0), 1.061226, rtol=1e-6)
  np.testing.assert_allclose(at(981, 961, 1.0), 1.006384, rtol=1e-6)
  np.testing.assert_allclose(at(1, 0, 0.0), 0.994357, rtol=1e-6)


def euler_by_hand(noise_levels, eta=0.0):
  """A user-defined sampler; eta is deliberately the variance of its noise."""
  for s, t in noise_levels.steps():
    noise = np.sqrt(eta) * t.sigma * sampler_table.NOISE
    x = t.signal * sampler_table.X0 + t.sigma * sampler_table.EPS
    yield samplers.row(s, t, x=x + noise)


def test_a_sampler_may_be_a_user_defined_function():
  own = SamplerConfig(12, euler_by_hand, "karras")
  euler = SamplerConfig(12, "euler", "karras")
  a, b = (each.plan(SCHEDULE).table.mix for each in (own, euler))
  np.testing.assert_array_equal(a, b)
  assert own.sampler_name == "euler_by_hand"
  assert not own.is_random and dataclasses.replace(own, eta=0.5).is_random
  with pytest.raises(ValueError, match="euler_by_hand' has no order"):
    SamplerConfig(12, euler_by_hand, order=2)
  with pytest.raises(ValueError, match="diffusers has no euler_by_hand"):
    SamplerConfig(12, euler_by_hand, compat="diffusers").plan(SCHEDULE)
  with pytest.raises(ValueError, match="made no rows"):
    SamplerConfig(12, lambda noise_levels: []).plan(SCHEDULE)


def test_a_user_defined_sampler_may_have_a_name(monkeypatch):
  monkeypatch.setattr(registry, "SAMPLERS", dict(SAMPLERS))
  monkeypatch.setattr(sampler_names, "SAMPLERS", registry.SAMPLERS)
  spec = samplers.SamplerSpec(euler_by_hand, "leading", may_stop_early=True)
  samplers.register_sampler("by_hand", spec)
  assert sampler_names.parse_sampler_name("By-Hand Karras") == (
    "by_hand",
    "karras",
  )
  a, b = (
    SamplerConfig(9, name, final_time=0.0).plan(SCHEDULE).table.mix
    for name in ("by_hand", "ddim")
  )
  np.testing.assert_array_equal(a, b)
  with pytest.raises(ValueError, match="exists already"):
    samplers.register_sampler("by_hand", euler_by_hand)
  with pytest.raises(ValueError, match="small letters"):
    samplers.register_sampler("By hand", euler_by_hand)
