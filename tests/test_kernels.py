"""Accelerators' attention: exact on any mesh, taken where it is worth it."""

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
  found = jax.random.split(jax.random.key(queries + width), 4)
  shapes = [(batch, n, heads, width) for n in (queries, keys, keys, queries)]
  return [
    jax.random.normal(key, shape, dtype)
    for key, shape in zip(found, shapes, strict=True)
  ]


# One device; more rows than there are; rows and heads; rows and queries; more
# heads than there are.
@pytest.mark.parametrize(
  "mesh", [None, (4, 2), (2, 2, 2), (4, 1, 1, 2), (2, 1, 4)], ids=str
)
# Whole blocks; lengths and widths that are filled up.
@pytest.mark.parametrize("shape", [(256, 384, 128), (300, 77, 40)], ids=str)
def test_splash_attention_is_attention(mesh, shape):
  devices = jax.devices()[:1] if mesh is None else None
  sharding = MeshShape(*(mesh or ())).build(devices)
  *arrays, cotangent = draw(*shape)
  kernel = AttentionKernels(sharding, "splash", is_interpreted=True)

  def pulled(attention_backend):
    def both(arrays, cotangent):
      out, pull = jax.vjp(
        lambda *qkv: dot_product_attention(*qkv, attention_backend), *arrays
      )
      return out, pull(cotangent)

    return jax.jit(both)(arrays, cotangent)

  ours, theirs = pulled(kernel), pulled("xla")
  for one, other in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
    np.testing.assert_allclose(one, other, atol=5e-6)


def test_what_a_kernel_does_not_answer_goes_the_portable_way():
  q, k, v, _ = draw(64, 64, 8)
  silent = lambda *qkv: None
  for is_causal in (False, True):
    found = dot_product_attention(q, k, v, silent, is_causal=is_causal)
    theirs = dot_product_attention(q, k, v, "xla", is_causal=is_causal)
    np.testing.assert_array_equal(found, theirs)
  loud = lambda *qkv: 1 / 0
  dot_product_attention(q, k, v, loud, is_causal=True)  # never asked
  with pytest.raises(ValueError, match="'cudnn' is an accelerator's"):
    dot_product_attention(q, k, v, "cudnn")


@pytest.mark.parametrize(
  ("asked", "expected"),
  [
    # SD 1 at 512: its first two levels, its third, and the words.
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
def test_kernels_are_chosen_by_machine_and_shape(asked, expected):
  assert choose_kernel(*asked) == expected


def machine(platform):
  """One device, said to be of a platform."""
  sharding = MeshShape().build(jax.devices()[:1])
  return unittest.mock.patch.object(type(sharding), "platform", platform)


def test_a_task_is_equipped_wherever_it_attends():
  task = config.load(str(CONFIGS / "sd" / "sd1.py")).task
  sharding = MeshShape().build(jax.devices()[:1])
  assert with_attention_kernels(task, sharding) is task  # of a CPU
  with machine("tpu"):
    fast = with_attention_kernels(task, sharding)
  roads = lambda task: (
    task.model.unet.attention_backend,
    task.model.conditioners[0].encoders[0].attention_backend,
  )
  assert set(roads(fast)) == {AttentionKernels(sharding)} and set(
    roads(task)
  ) == {"auto"}
  # Nothing else is another.
  unet = fast.model.unet.clone(attention_backend="auto")
  assert unet == task.model.unet and fast.optimizer == task.optimizer
  plain = override(task, {"model.unet.road": "xla"})
  with machine("tpu"):
    assert (
      with_attention_kernels(plain, sharding).model.unet.attention_backend
      == "xla"
    )
  asked = override(task, {"model.unet.road": "cudnn"})
  with machine("gpu"):
    assert (
      with_attention_kernels(
        asked, sharding
      ).model.unet.attention_backend.kernel
      == "cudnn"
    )
  with pytest.raises(ValueError, match="have no such kernel"):
    with_attention_kernels(asked, sharding)


def test_a_gpu_is_given_cudnns():
  """By its lowering: no GPU is here, so nothing asks which cuDNN it has."""
  fused = "jax._src.cudnn.fused_attention_stablehlo"
  found = pytest.importorskip(fused)
  names = ("check_cudnn_version", "check_compute_capability")
  if not all(hasattr(found, name) for name in names):
    pytest.skip("jax asks for cuDNN's version elsewhere")
  sharding = MeshShape().build(jax.devices()[:1])
  q, k, v, _ = draw(1024, 1024, 40, dtype=jnp.bfloat16)
  with (
    machine("gpu"),
    unittest.mock.patch(f"{fused}.{names[0]}", lambda: 91000),
    unittest.mock.patch(f"{fused}.{names[1]}", lambda *told: None),
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
def test_a_tpu_is_given_splash_attention(mesh):
  """Compiled for one that is not here."""
  pytest.importorskip("libtpu")
  sharding = MeshShape(*mesh).build(aot.topology_devices("v5e:2x2"))
  block = SpatialTransformer(1, heads=2, head_width=40, dtype="bfloat16")
  x = jax.ShapeDtypeStruct(
    (4, 64, 64, 64), jnp.float32, sharding=sharding.batch
  )
  words = jax.ShapeDtypeStruct(
    (4, 77, 32), jnp.float32, sharding=sharding.batch
  )
  params = jax.eval_shape(block.init, jax.random.key(0), x, words)
  params = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding.replicated
    ),
    params,
  )
  fast = with_attention_kernels(block, sharding)
  grad = jax.grad(lambda *told: (fast.apply(*told) ** 2).sum())
  made = jax.jit(grad).lower(params, x, words).compile()
  text = made.as_text()
  assert "tpu_custom_call" in text and "splash_mha_fwd" in text
  assert "splash_mha_dkv" in text  # backward
