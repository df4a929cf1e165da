"""The CPU's operators are XLA's, to float32's rounding, and are chosen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import print_saved_residuals
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ldm_jax.nn import layers
from ldm_jax.nn.operators import choice, head_attention, strips
from ldm_jax.nn.operators.convolution import convolve, double
from ldm_jax.nn.operators.doubling import doubled_convolution
from ldm_jax.nn.operators.im2col import im2col_convolution
from ldm_jax.nn.operators.pointwise import (
  few_outputs_convolution,
  pointwise_convolution,
)
from ldm_jax.nn.operators.winograd import winograd_convolution

ALGORITHMS = [
  winograd_convolution,
  im2col_convolution,
  doubled_convolution,
  few_outputs_convolution,
]
# Even, odd and thin images; channels that differ.
SHAPES = [(2, 8, 6, 12, 20), (1, 7, 5, 20, 12), (1, 1, 9, 8, 8)]

# Large for their channels: in strips of 4 tiles.
STRIPED = [(2, 13, 11, 2, 3), (1, 16, 10, 3, 2), (1, 7, 40, 2, 2)]


@pytest.fixture
def patched(monkeypatch):
  """`monkeypatch`, for what the operators' kept traces were made with."""
  jax.clear_caches()
  yield monkeypatch
  jax.clear_caches()


def exact(x, kernel, is_doubled):
  """The convolution in float64 NumPy."""
  x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
  if is_doubled:
    x = x.repeat(2, 1).repeat(2, 2)
  _, h, w, _ = x.shape
  x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  return sum(
    x[:, i : i + h, j : j + w] @ kernel[i, j]
    for i in range(3)
    for j in range(3)
  )


def exact_gradients(x, kernel, grad, is_doubled):
  """The gradients of sum(grad * convolution), one tap at a time."""
  x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
  grad = np.asarray(grad, np.float64)
  if is_doubled:
    x = x.repeat(2, 1).repeat(2, 2)
  b, h, w, c = x.shape
  padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  dx, dkernel = np.zeros_like(padded), np.zeros_like(kernel)
  for i in range(3):
    for j in range(3):
      seen = padded[:, i : i + h, j : j + w]
      dkernel[i, j] = np.einsum("bhwc,bhwd->cd", seen, grad)
      dx[:, i : i + h, j : j + w] += grad @ kernel[i, j].T
  dx = dx[:, 1:-1, 1:-1]
  if is_doubled:
    dx = dx.reshape(b, h // 2, 2, w // 2, 2, c).sum((2, 4))
  return dx, dkernel


def draw(b, h, w, c, d, is_doubled=False):
  rng = np.random.default_rng()
  times = 2 if is_doubled else 1
  shapes = (b, h, w, c), (3, 3, c, d), (b, times * h, times * w, d)
  return [
    jax.device_put(rng.standard_normal(shape, np.float32)) for shape in shapes
  ]


def value_and_pulled(function, cotangent, *inputs):
  """A function's value and the products with its Jacobians, in one program."""

  @jax.jit
  def both(cotangent, *inputs):
    value, pull = jax.vjp(function, *inputs)
    return value, *pull(cotangent)

  return map(np.asarray, both(cotangent, *inputs))


def assert_near(found, right, limit=3e-6):
  scale = np.abs(right).max()
  np.testing.assert_allclose(found, right, rtol=0, atol=limit * scale)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("convolution", ALGORITHMS)
def test_convolutions_are_exact(convolution, shape):
  is_doubled = convolution is doubled_convolution
  x, kernel, grad = draw(*shape, is_doubled)
  found, *pulled = value_and_pulled(convolution, grad, x, kernel)
  assert_near(found, exact(x, kernel, is_doubled))
  right = exact_gradients(x, kernel, grad, is_doubled)
  for ours, theirs in zip(pulled, right, strict=True):
    assert_near(ours, theirs)


@pytest.mark.parametrize("shape", STRIPED)
@pytest.mark.parametrize(
  "convolution", [winograd_convolution, doubled_convolution]
)
def test_strips_of_lines_are_exact(patched, convolution, shape):
  """Odd heights and widths, a last strip that is not full, two images."""
  patched.setattr(strips, "_TILES", 4)
  b, h, w, c, d = shape
  assert strips.are_many(b * (h // 2) * (w // 2) // 4, jnp.empty((3, 3, c, d)))
  assert strips.lines_of_a_strip(h, b * w, 1) < h
  test_convolutions_are_exact(convolution, shape)


def test_a_convolution_of_one_pixel_is_a_product():
  x, kernel, grad = draw(2, 5, 3, 6, 4)
  kernel = kernel[:1, :1]
  found, pull = jax.vjp(pointwise_convolution, x, kernel)
  exact = [np.asarray(a, np.float64) for a in (x, kernel[0, 0], grad)]
  assert_near(found, exact[0] @ exact[1])
  x_grad, kernel_grad = pull(grad)
  assert_near(x_grad, exact[2] @ exact[1].T)
  assert_near(kernel_grad[0, 0], np.einsum("bhwc,bhwd->cd", exact[0], exact[2]))


@pytest.mark.parametrize("is_activated", [False, True])
def test_group_norm_of_large_images_is_exact(monkeypatch, is_activated):
  """Of a mean far above the deviation; with JAX's gradients in float64."""
  monkeypatch.setattr(choice, "_LARGE_IMAGE", 1)
  rng = np.random.default_rng()
  draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
  x, grad = 100 + draw(2, 5, 7, 12), draw(2, 5, 7, 12)
  params = {"scale": draw(12), "bias": draw(12)}
  norm = layers.GroupNorm(4, 1e-5, jnp.float32, is_activated)
  apply = lambda params, x: norm.apply({"params": params}, x)

  def plain(params, x):
    each = x.reshape(2, 35, 4, 3)
    z = (each - each.mean((1, 3), keepdims=True)) / jnp.sqrt(
      each.var((1, 3), keepdims=True) + 1e-5
    )
    y = z.reshape(x.shape) * params["scale"] + params["bias"]
    return y * jax.nn.sigmoid(y) if is_activated else y

  found, pull = jax.vjp(apply, params, x)
  assert "custom_vjp" in str(jax.make_jaxpr(apply)(params, x))
  with jax.enable_x64(True):
    double = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), (params, x))
    right, pull_right = jax.vjp(plain, *double)
    right_grads = pull_right(jnp.asarray(grad, jnp.float64))
  assert_near(found, np.asarray(right), 1e-5)
  for ours, theirs in zip(
    jax.tree.leaves(pull(grad)), jax.tree.leaves(right_grads), strict=True
  ):
    assert_near(ours, np.asarray(theirs), 1e-4)


@pytest.mark.parametrize("shape", [SHAPES[1], STRIPED[0]])
def test_a_turned_kernel_is_read_as_it_is_stored(patched, shape):
  """With the gradients of a convolution whose kernel is turned before it."""
  patched.setattr(strips, "_TILES", 4)
  x, kernel, grad = draw(*shape)
  stored = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
  turned = lambda x, kernel: winograd_convolution(x, kernel, True)
  found, pull = jax.vjp(turned, x, stored)
  assert_near(found, exact(x, kernel, False))
  x_grad, kernel_grad = exact_gradients(x, kernel, grad, False)
  kernel_grad = np.flip(kernel_grad, (0, 1)).swapaxes(2, 3)
  for ours, right in zip(pull(grad), (x_grad, kernel_grad), strict=True):
    assert_near(ours, right)


@pytest.mark.parametrize("lengths", [(64, 64), (37, 77), (60, 90), (13, 5)])
def test_attention_by_head_is_exact(patched, lengths):
  """With a few scores held at once, so that all loops are gone through."""
  patched.setattr(head_attention, "_SCORES", 1024)
  rng = np.random.default_rng()
  q, k, v, grad = (
    jax.device_put(rng.standard_normal((2, length, 3, 8), np.float32))
    for length in (lengths[0], lengths[1], lengths[1], lengths[0])
  )

  def stored(q, k, v):
    return jax.nn.dot_product_attention(q, k, v)

  attend = head_attention.head_attention
  found, *pulled = value_and_pulled(attend, grad, q, k, v)
  right, *pulled_right = value_and_pulled(stored, grad, q, k, v)
  assert_near(found, right)
  for ours, theirs in zip(pulled, pulled_right, strict=True):
    assert_near(ours, theirs, 1e-5)


def test_no_scores_are_kept_under_remat_of_dots(capsys):
  rng = np.random.default_rng()
  q, k, v = (
    jax.device_put(rng.standard_normal((1, length, 2, 8), np.float32))
    for length in (48, 40, 40)
  )
  attend = lambda *heads: jnp.sin(head_attention.head_attention(*heads)).sum()
  policy = layers._is_saved_dot
  print_saved_residuals(jax.checkpoint(attend, policy=policy), q, k, v)
  kept = capsys.readouterr().out.splitlines()
  assert len(kept) == 3
  assert all("from the argument" in line for line in kept)


def test_lengths_without_equal_chunks_are_not_by_head():
  """4,099 is prime: its equal chunks would be of one query each."""
  assert head_attention.has_even_chunks(4096, 4096)
  assert head_attention.has_even_chunks(4100, 77)
  assert not head_attention.has_even_chunks(4099, 4099)


@pytest.mark.parametrize("convolution", ALGORITHMS)
@pytest.mark.parametrize("spec", [("data", None), (None, "tensor")])
@pytest.mark.parametrize("shape", [(8, 4, 4, 16, 32), (8, 8, 8, 4, 4)])
def test_gradients_on_a_mesh_are_one_devices(patched, convolution, spec, shape):
  """The second shape is computed in strips, the first in rows."""
  patched.setattr(strips, "_TILES", 4)
  is_doubled = convolution is doubled_convolution
  x, kernel, grad = draw(*shape, is_doubled)
  mesh = Mesh(np.array(jax.devices()[:8]).reshape(4, 2), ("data", "tensor"))
  place = lambda array, *axes: jax.device_put(
    array, NamedSharding(mesh, PartitionSpec(*axes))
  )

  @jax.jit
  def pull(x, kernel, grad):
    value, pull = jax.vjp(convolution, x, kernel)
    return *pull(grad), value

  data, tensor = spec
  placed = (
    place(x, data),
    place(kernel, None, None, None, tensor),
    place(grad, data, None, None, tensor),
  )
  for ours, theirs in zip(pull(*placed), pull(x, kernel, grad), strict=True):
    assert_near(np.asarray(ours), np.asarray(theirs), 1e-5)
  if data:  # every device computes its own images alone
    whole = NamedSharding(mesh, PartitionSpec())
    results = (placed[0].sharding, whole, placed[2].sharding)
    program = jax.jit(pull, out_shardings=results).lower(*placed).compile()
    assert "all-reduce" in program.as_text()
    assert "all-gather" not in program.as_text()


def test_equal_shapes_are_traced_and_lowered_once():
  x, kernel, _ = draw(1, 12, 10, 12, 12)

  def loss(x, kernel):
    for _ in range(3):
      x = winograd_convolution(x, kernel)
    return x.sum()

  pulled = jax.value_and_grad(loss, (0, 1))
  text = jax.jit(pulled).lower(x, kernel).as_text()
  # Of the kernel, of the turned kernel, and the gradient of the kernel.
  assert text.count("stablehlo.while") == 3


WIDE, NARROW = (3, 3, 128, 128), (3, 3, 64, 128)


@pytest.mark.parametrize(
  ("pixels", "kernel", "dtype", "right"),
  [
    ((2, 16, 16, 128), WIDE, jnp.float32, "winograd"),
    ((2, 8, 8, 128), WIDE, jnp.float32, "im2col"),
    ((2, 16, 16, 64), NARROW, jnp.float32, "xla"),
    ((2, 16, 16, 128), WIDE, jnp.bfloat16, "im2col"),
    ((64, 256, 256, 128), WIDE, jnp.bfloat16, "winograd"),
    ((2, 16, 16, 128), WIDE, jnp.float16, "xla"),
    ((2, 16, 16, 128), (3, 3, 128, 4), jnp.float32, "few_outputs"),
    ((2, 16, 16, 4), (3, 3, 4, 128), jnp.float32, "xla"),
    ((2, 16, 16, 64), (3, 3, 64, 4), jnp.float32, "xla"),
    ((2, 16, 16, 8), (1, 1, 8, 16), jnp.float32, "pointwise"),
    ((2, 16, 16, 8), (1, 1, 8, 16), jnp.float16, "xla"),
  ],
)
def test_the_algorithm_is_chosen_by_shape_and_format(
  pixels, kernel, dtype, right
):
  assert choice.choose_convolution(pixels, kernel, dtype) == right
  with choice.operators("xla"):
    assert choice.choose_convolution(pixels, kernel, dtype) == "xla"


def test_layers_call_what_was_chosen():
  """The same parameters and values; a context traces anew."""
  x = np.random.default_rng().standard_normal((1, 16, 16, 128))
  x = jnp.asarray(x, jnp.float32)

  class Two(layers.nn.Module):
    @layers.nn.compact
    def __call__(self, x):
      x = layers.conv(x, 128, name="one", dtype="float32")
      return layers.upsample_conv(x, 128, name="two", dtype="float32")

  apply = jax.jit(Two().apply)
  params = Two().init(jax.random.key(0), x)
  fast = apply(params, x)
  text = apply.lower(params, x).as_text()
  with choice.operators("xla"):
    plain = apply(params, x)
    plain_text = apply.lower(params, x).as_text()
  assert "stablehlo.convolution" not in text
  assert plain_text.count("stablehlo.convolution") == 2
  assert not np.array_equal(fast, plain)
  assert_near(np.asarray(fast), np.asarray(plain), 1e-5)


def test_an_odd_skip_is_cut_before_the_convolution():
  x = np.random.default_rng().standard_normal((1, 4, 4, 128))
  x = jnp.asarray(x, jnp.float32)

  class Cut(layers.nn.Module):
    @layers.nn.compact
    def __call__(self, x):
      return layers.upsample_conv(
        x, 8, name="two", size=(7, 8), dtype="float32"
      )

  params = Cut().init(jax.random.key(0), x)
  kernel = params["params"]["two"]["kernel"]
  bias = np.asarray(params["params"]["two"]["bias"])
  right = exact(double(jnp.asarray(x))[:, :7], kernel, False) + bias
  assert_near(np.asarray(Cut().apply(params, x)), right)


def test_what_is_no_name_is_refused():
  text = r"LDM_JAX_OPERATORS=fast .* auto, xla"
  with choice._OPERATORS("fast"), pytest.raises(ValueError, match=text):
    choice.is_enabled()


def test_xlas_operators_have_forward_derivatives():
  layer = layers.nn.Conv(
    128, (3, 3), padding=1, conv_general_dilated=layers.convolve
  )
  x = np.random.default_rng().standard_normal((1, 16, 16, 128))
  x = jnp.asarray(x, jnp.float32)
  params = layer.init(jax.random.key(0), x)
  with choice.operators("xla"):
    _, slope = jax.jvp(lambda x: layer.apply(params, x), (x,), (x,))
  bias = params["params"]["bias"]
  np.testing.assert_allclose(slope, layer.apply(params, x) - bias, atol=1e-4)


def test_a_large_bfloat16_image_is_convolved_in_float32():
  rng = np.random.default_rng()
  x, kernel = (
    jnp.asarray(rng.standard_normal(shape), jnp.bfloat16)
    for shape in ((1, 32, 34, 128), (3, 3, 128, 128))
  )
  found = convolve(x, kernel, (1, 1), ((1, 1), (1, 1)))
  assert found.dtype == jnp.bfloat16
  expected = exact(x.astype(jnp.float32), kernel.astype(jnp.float32), False)
  # Rounded once, at the end: half a unit of eight bits.
  np.testing.assert_allclose(
    np.asarray(found, np.float64), expected, rtol=2**-8, atol=1e-3
  )
