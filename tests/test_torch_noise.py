"""torch's random numbers on a CPU, number by number."""

import math

import numpy as np
import pytest

from ldm_jax.diffusion.torch_noise import TorchGenerator, torch_normal

CLOSE = {"rtol": 0, "atol": 1e-6}


def test_the_first_numbers_of_torch():
  """torch 2.13.0+cpu, AVX512: torch.manual_seed(42); torch.randn(2, 2, 5)."""
  numbers = [
    [
      [1.9269152879, 1.4872840643, 0.9007171988, -2.1055209637, -0.7581311464],
      [1.0783176422, 0.8008005619, 1.6806205511, 0.3558599055, -0.6866229773],
    ],
    [
      [-0.4933563471, 0.2414877862, -0.2316243201, 0.0417594910, -0.2515752912],
      [0.8598585129, -0.3097267747, -0.3957104981, 0.8034093379, -0.6215953827],
    ],
  ]
  np.testing.assert_allclose(torch_normal(42, (2, 2, 5)), numbers, **CLOSE)


def test_calls_continue_the_sequence_of_torch():
  """torch 2.13.0+cpu, AVX512: torch.manual_seed(42), then torch.randn(3),
  torch.randn(17)[[0, -1]] and torch.randn(2), of which the first is the
  sine of the first call's last pair."""
  generator = TorchGenerator(42)
  first, block, last = (generator.normal((size,)) for size in (3, 17, 2))
  expected = [0.3366903663, 0.1288094074, 0.2344623656]
  np.testing.assert_allclose(first, expected, **CLOSE)
  np.testing.assert_allclose(
    block[[0, -1]], [1.7877893448, -1.5575724840], **CLOSE
  )
  np.testing.assert_allclose(last, [0.2303330302, 1.1214427948], **CLOSE)


@pytest.mark.parametrize("shape", [(), (3,), (15,), (16,), (4, 17, 3), (0, 2)])
def test_shapes_and_format(shape):
  noise = torch_normal(0, shape)
  assert noise.shape == shape and noise.dtype == np.float32
  np.testing.assert_array_equal(noise, torch_normal(0, shape))


def test_only_the_lower_half_of_a_seed_counts():
  """torch seeds its twister with 32 bits; -1 is 2^64 - 1."""
  noise = torch_normal(2**32 - 1, (20,))
  for seed in (-1, 2**64 - 1, 2**63 - 1, 7 * 2**32 - 1):
    np.testing.assert_array_equal(torch_normal(seed, (20,)), noise)
  assert not np.array_equal(torch_normal(1, (20,)), noise)


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1])
def test_a_seed_of_over_64_bits_is_refused(seed):
  with pytest.raises(ValueError, match=f"seed {seed} .* try"):
    torch_normal(seed, (2,))


@pytest.mark.parametrize("size", [2**20, 15])
def test_the_numbers_are_normal(size):
  """Moments, and the fraction within one deviation, to five standard errors."""
  generator, count = TorchGenerator(3), 2**20
  calls = count // size if size > 15 else 5_000
  noise = np.concatenate([generator.normal((size,)) for _ in range(calls)])
  noise = noise.astype(np.float64)
  error = 5 / math.sqrt(noise.size)
  assert abs(noise.mean()) < error
  assert abs(noise.var() - 1) < error * math.sqrt(2)
  assert abs((noise**3).mean()) < error * math.sqrt(15)
  assert abs((noise**4).mean() - 3) < error * math.sqrt(96)
  within = math.erf(math.sqrt(0.5))
  assert abs((abs(noise) < 1).mean() - within) < error / 2


SEEDS = [0, 42, -1, -5, 2**32 + 7, 2**63, 2**64 - 1, -(2**63), 1234567890123]


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_every_shape_and_seed_equals_torch(seed):
  torch = pytest.importorskip("torch")
  sizes = [*range(35), 47, 48, 49, 1000, 4096, 100_003]
  shapes = [(), (2, 3), (1, 4, 64, 64), (3, 4, 33, 29), *((n,) for n in sizes)]
  for shape in shapes:
    torch.manual_seed(seed)
    theirs = torch.randn(shape).numpy()
    np.testing.assert_allclose(torch_normal(seed, shape), theirs, **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_repeated_draws_equal_torch(seed):
  """Sizes on both sides of sixteen, so that a sine waits for later calls."""
  torch = pytest.importorskip("torch")
  theirs, ours = torch.Generator().manual_seed(seed), TorchGenerator(seed)
  for size in np.random.default_rng(0).integers(0, 40, 300).tolist():
    expected = torch.randn(size, generator=theirs).numpy()
    np.testing.assert_allclose(ours.normal((size,)), expected, **CLOSE)


@pytest.mark.slow
def test_four_million_numbers_equal_torch():
  """Where a radius is longest, an angle's rounding shows most."""
  torch = pytest.importorskip("torch")
  torch.manual_seed(5)
  theirs = torch.randn(4_000_000).numpy()
  assert abs(theirs).max() > 5
  np.testing.assert_allclose(torch_normal(5, theirs.shape), theirs, **CLOSE)
