"""Fused attention kernels of TPUs and GPUs, chosen by shape, on any mesh."""

import dataclasses
import functools
import operator
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ldm_jax.runtime.devices.sharding import Sharding

Name = Literal["splash", "cudnn"]
KERNELS: dict[str, Name] = {"tpu": "splash", "gpu": "cudnn"}  # by platform

LANES = 128  # of a TPU; splash attention needs multiples as lengths and widths
BLOCKS = (1024, 512, 256, 128)
# Larger blocks of wider heads exceed a v5e's vector memory in the backward
# pass.
WIDE, WIDE_BLOCKS = 128, (512, 256, 128)


def choose_kernel(
  platform: str, dtype: Any, width: int, queries: int, keys: int
) -> Name | None:
  """The fastest kernel for these shapes, or None where XLA is as fast.

  On a TPU, splash attention for long sequences: XLA would write scores of 1,024
  x 1,024 and more to memory. On a GPU, cuDNN's flash attention for what it
  supports: half precision and widths of at most 128 that 8 divides.

  Args:
    width: features of a head.
    queries, keys: sequence lengths.
  """
  if platform == "tpu":
    is_long = queries * keys >= 1024 * 1024 and min(queries, keys) >= 256
    return "splash" if is_long else None
  if platform == "gpu":
    is_half = jnp.dtype(dtype).itemsize == 2
    fits = is_half and width <= 128 and width % 8 == 0
    return "cudnn" if fits and queries >= 256 else None
  return None


@dataclasses.dataclass(frozen=True)
class AttentionKernels:
  """An `attention_backend` of `nn.attention` for a platform and a mesh.

  Attributes:
    kernel: used for all shapes; None chooses by `choose_kernel`.
    is_interpreted: run splash attention in Pallas' interpret mode, on any
      platform.
  """

  sharding: Sharding
  kernel: Name | None = None
  is_interpreted: bool = False

  def __call__(
    self,
    q: Float[Array, "b l n d"],
    k: Float[Array, "b m n d"],
    v: Float[Array, "b m n d"],
  ) -> Float[Array, "b l n d"] | None:
    """softmax(q k^T / sqrt(d)) v, or None where XLA is as fast."""
    platform = self.sharding.platform
    shape = q.shape[3], q.shape[1], k.shape[1]
    name = self.kernel or choose_kernel(platform, q.dtype, *shape)
    if name is None:
      return None
    attend = cudnn
    if name == "splash":
      attend = functools.partial(splash, is_interpreted=self.is_interpreted)
    return self.sharding.shard_heads(attend, q, k, v)


def cudnn(q: Array, k: Array, v: Array) -> Array:
  """cuDNN's flash attention (Dao et al. 2022)."""
  return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")


def splash(
  q: Float[Array, "b l n d"],
  k: Float[Array, "b m n d"],
  v: Float[Array, "b m n d"],
  is_interpreted: bool = False,
) -> Float[Array, "b l n d"]:
  """Pallas' splash attention for TPUs, padded so that any shape is allowed.

  Widths are padded with zeros, which change no score; padding keys belong to
  another segment, which no query attends to.
  """
  from jax.experimental.pallas.ops.tpu import splash_attention as pallas

  width, length, keys = q.shape[3], q.shape[1], k.shape[1]
  q = q * jnp.asarray(width**-0.5, q.dtype)
  q, k, v = (_padded(x).swapaxes(1, 2) for x in (q, k, v))
  heads, rows = q.shape[1:3]
  query_block, key_block = _block(q.shape), _block(k.shape)
  sizes = pallas.BlockSizes(
    block_q=query_block,
    block_kv=key_block,
    block_q_dkv=query_block,
    block_kv_dkv=key_block,
    use_fused_bwd_kernel=True,
  )
  mask = pallas.MultiHeadMask([pallas.FullMask((rows, k.shape[2]))] * heads)
  kernel = pallas.make_splash_mha(
    mask,
    head_shards=1,
    q_seq_shards=1,
    block_sizes=sizes,
    interpret=is_interpreted,
  )
  segments = None
  if keys < k.shape[2]:
    is_padding = (jnp.arange(k.shape[2]) >= keys).astype(jnp.int32)
    segments = pallas.SegmentIds(jnp.zeros(rows, jnp.int32), is_padding)
  out = jax.vmap(kernel, in_axes=(0, 0, 0, None))(q, k, v, segments)
  return out.swapaxes(1, 2)[:, :length, :, :width]


def _padded(x: Array) -> Array:
  """[b, l, n, d] with l and d padded to multiples of LANES."""
  length, width = ((0, -size % LANES) for size in (x.shape[1], x.shape[3]))
  return jnp.pad(x, [(0, 0), length, (0, 0), width])


def _block(shape: tuple[int, ...]) -> int:
  blocks = BLOCKS if shape[3] <= WIDE else WIDE_BLOCKS
  return next(block for block in blocks if shape[2] % block == 0)


def with_attention_kernels(node: Any, sharding: Sharding) -> Any:
  """A task, model or network with the kernels of the mesh's platform.

  Every field `attention_backend` in the tree of dataclasses that is "auto" or
  names a kernel is replaced by an `AttentionKernels`. On platforms without
  kernels "auto" stays.

  Raises:
    ValueError: a field names a kernel of another platform.
  """
  if type(node) is tuple:
    found = tuple(with_attention_kernels(item, sharding) for item in node)
    is_same = all(map(operator.is_, found, node))
    return node if is_same else found
  if not dataclasses.is_dataclass(node) or isinstance(node, type):
    return node
  values = {
    field.name: _backend(getattr(node, field.name), sharding)
    if field.name == "attention_backend"
    else with_attention_kernels(getattr(node, field.name), sharding)
    for field in dataclasses.fields(node)
    if field.name not in ("parent", "name")  # Linen's own
  }
  changed = {
    name: value
    for name, value in values.items()
    if value is not getattr(node, name)
  }
  return dataclasses.replace(node, **changed) if changed else node


def _backend(attention_backend: Any, sharding: Sharding) -> Any:
  """The value of a field `attention_backend` on a platform."""
  available = KERNELS.get(sharding.platform)
  if attention_backend == "auto":
    return (
      attention_backend if available is None else AttentionKernels(sharding)
    )
  if attention_backend in KERNELS.values():
    if attention_backend != available:
      raise ValueError(
        f"attention_backend={attention_backend}: these devices "
        f"({sharding.platform}) have no such kernel; splash needs a "
        "TPU, cudnn a GPU; try auto"
      )
    return AttentionKernels(sharding, attention_backend)
  return attention_backend
