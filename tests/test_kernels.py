"""Attention kernels of TPUs and GPUs: exact on any mesh, chosen by shape."""

import pathlib
import unittest.mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax import config
from ldm_jax.config import override
from ldm_jax.nn.attention import dot_product_attention
from ldm_jax.nn.transformer import SpatialTransformer
from ldm_jax.runtime.devices import aot
from ldm_jax.runtime.devices.attention_kernels import (
  AttentionKernels,
  choose_kernel,
  with_attention_kernels,
)
from ldm_jax.runtime.devices.sharding import MeshShape

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"


def draw(queries, keys, width, heads=2, batch=4, dtype=jnp.float32):
  random_keys = jax.random.split(jax.random.key(queries + width), 4)
  shapes = [(batch, n, heads, width) for n in (queries, keys, keys, queries)]
  return [
    jax.random.normal(key, shape, dtype)
    for key, shape in zip(random_keys, shapes, strict=True)
  ]


# One device; fewer rows than shards; rows and heads; rows and queries; fewer
# heads than shards.
@pytest.mark.parametrize(
  "mesh", [None, (4, 2), (2, 2, 2), (4, 1, 1, 2), (2, 1, 4)], ids=str
)
# Multiples of the block sizes; lengths and widths that need padding.
@pytest.mark.parametrize("shape", [(256, 384, 128), (300, 77, 40)], ids=str)
def test_splash_attention_equals_xlas_attention(mesh, shape):
  devices = jax.devices()[:1] if mesh is None else None
  sharding = MeshShape(*(mesh or ())).build(devices)
  *arrays, cotangent = draw(*shape)
  kernel = AttentionKernels(sharding, "splash", is_interpreted=True)

  def output_and_gradients(attention_backend):
    def both(arrays, cotangent):
      out, pull = jax.vjp(
        lambda *qkv: dot_product_attention(*qkv, attention_backend), *arrays
      )
      return out, pull(cotangent)

    return jax.jit(both)(arrays, cotangent)

  found, expected = map(output_and_gradients, (kernel, "xla"))
  for one, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
    np.testing.assert_allclose(one, other, atol=5e-6)


def test_xla_computes_what_a_kernel_returns_none_for():
  q, k, v, _ = draw(64, 64, 8)
  none = lambda *qkv: None
  for is_causal in (False, True):
    found = dot_product_attention(q, k, v, none, is_causal=is_causal)
    expected = dot_product_attention(q, k, v, "xla", is_causal=is_causal)
    np.testing.assert_array_equal(found, expected)
  failing = lambda *qkv: 1 / 0
  dot_product_attention(q, k, v, failing, is_causal=True)  # never called
  with pytest.raises(ValueError, match="'cudnn' needs an accelerator"):
    dot_product_attention(q, k, v, "cudnn")


@pytest.mark.parametrize(
  ("case", "expected"),
  [
    # SD 1 at 512: its first two levels, its third, and cross-attention.
    (("tpu", "bfloat16", 40, 4096, 4096), "splash"),
    (("tpu", "float32", 80, 1024, 1024), "splash"),
    (("tpu", "bfloat16", 160, 256, 256), None),
    (("tpu", "bfloat16", 40, 4096, 77), None),
    (("tpu", "bfloat16", 40, 16384, 77), None),
    # The autoencoder's middle, one wide head.
    (("tpu", "bfloat16", 512, 4096, 4096), "splash"),
    (("gpu", "bfloat16", 512, 4096, 4096), None),
    (("gpu", "bfloat16", 40, 4096, 77), "cudnn"),
    (("gpu", "float16", 128, 256, 256), "cudnn"),
    (("gpu", "float32", 40, 4096, 4096), None),
    (("gpu", "bfloat16", 60, 4096, 4096), None),
    (("gpu", "bfloat16", 40, 64, 64), None),
    (("cpu", "bfloat16", 40, 4096, 4096), None),
  ],
)
def test_kernels_are_chosen_by_platform_and_shape(case, expected):
  assert choose_kernel(*case) == expected


def platform(name):
  """Meshes report another platform than the CPU's."""
  sharding = MeshShape().build(jax.devices()[:1])
  return unittest.mock.patch.object(type(sharding), "platform", name)


def test_all_attention_layers_of_a_task_get_the_kernel():
  task = config.load(str(CONFIGS / "sd" / "sd1.py")).task
  sharding = MeshShape().build(jax.devices()[:1])
  assert with_attention_kernels(task, sharding) is task  # of a CPU
  with platform("tpu"):
    fast = with_attention_kernels(task, sharding)
  backends = lambda task: (
    task.model.unet.attention_backend,
    task.model.conditioners[0].encoders[0].attention_backend,
  )
  assert set(backends(fast)) == {AttentionKernels(sharding)}
  assert set(backends(task)) == {"auto"}
  # Nothing else is changed.
  unet = fast.model.unet.clone(attention_backend="auto")
  assert unet == task.model.unet and fast.optimizer == task.optimizer
  field = "model.unet.attention_backend"
  xla = override(task, {field: "xla"})
  with platform("tpu"):
    found = with_attention_kernels(xla, sharding)
  assert found.model.unet.attention_backend == "xla"
  cudnn = override(task, {field: "cudnn"})
  with platform("gpu"):
    found = with_attention_kernels(cudnn, sharding)
  assert found.model.unet.attention_backend.kernel == "cudnn"
  with pytest.raises(ValueError, match="have no such kernel"):
    with_attention_kernels(cudnn, sharding)


def test_cudnn_attention_is_lowered_for_a_gpu():
  """Without a GPU, so the checks of its cuDNN version are replaced."""
  fused = "jax._src.cudnn.fused_attention_stablehlo"
  found = pytest.importorskip(fused)
  names = ("check_cudnn_version", "check_compute_capability")
  if not all(hasattr(found, name) for name in names):
    pytest.skip("jax checks cuDNN's version elsewhere")
  sharding = MeshShape().build(jax.devices()[:1])
  q, k, v, _ = draw(1024, 1024, 40, dtype=jnp.bfloat16)
  with (
    platform("gpu"),
    unittest.mock.patch(f"{fused}.{names[0]}", lambda: 91000),
    unittest.mock.patch(f"{fused}.{names[1]}", lambda *_: None),
  ):
    loss = lambda *qkv: (
      dot_product_attention(*qkv, AttentionKernels(sharding))
      .astype(float)
      .sum()
    )
    traced = jax.jit(jax.grad(loss, (0, 1, 2))).trace(q, k, v)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
  assert "__cudnn$fmhaSoftmax" in text and "Backward" in text


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [(4,), (1, 2, 2)], ids=str)
def test_splash_attention_is_compiled_for_a_tpu(mesh):
  """Ahead of time, for an absent one."""
  pytest.importorskip("libtpu")
  sharding = MeshShape(*mesh).build(aot.topology_devices("v5e:2x2"))
  block = SpatialTransformer(1, heads=2, head_width=40, dtype="bfloat16")
  x = jax.ShapeDtypeStruct(
    (4, 64, 64, 64), jnp.float32, sharding=sharding.batch
  )
  context = jax.ShapeDtypeStruct(
    (4, 77, 32), jnp.float32, sharding=sharding.batch
  )
  params = jax.eval_shape(block.init, jax.random.key(0), x, context)
  params = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding.replicated
    ),
    params,
  )
  fast = with_attention_kernels(block, sharding)
  grad = jax.grad(lambda *args: (fast.apply(*args) ** 2).sum())
  compiled = jax.jit(grad).lower(params, x, context).compile()
  text = compiled.as_text()
  assert "tpu_custom_call" in text and "splash_mha_fwd" in text
  assert "splash_mha_dkv" in text  # backward
