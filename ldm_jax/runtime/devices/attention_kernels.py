"""Attention by the kernels that accelerators have: which, when, on any mesh."""

import dataclasses
import functools
import operator
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ldm_jax.runtime.devices.sharding import Sharding

Name = Literal["splash", "cudnn"]
KERNELS: dict[str, Name] = {"tpu": "splash", "gpu": "cudnn"}  # platform: kernel

LANES = 128  # of a TPU: what splash attention's lengths and widths divide by
BLOCKS = (1024, 512, 256, 128)
# Larger blocks of wider heads do not fit a v5e's vector memory on the way back.
WIDE, WIDE_BLOCKS = 128, (512, 256, 128)


def choose_kernel(
  platform: str, dtype: Any, width: int, queries: int, keys: int
) -> Name | None:
  """The kernel for a head of so many features, or None where XLA is as good.

  On a TPU, splash attention for long self-attention: scores of 1,024 x 1,024
  and more would be written to memory. On a GPU, cuDNN's flash attention for
  whatever it takes: half precision and widths of at most 128 that 8 divides.
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
  """A road of `nn.attention.attend` that knows machine and mesh.

  Attributes:
    kernel: the kernel to take whatever the shapes, or None to choose.
    is_interpreted: run a TPU's kernel as plain operations, anywhere.
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
    """softmax(q k^T / sqrt(d)) v, or None where no kernel is worth it."""
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
  """Pallas' splash attention for TPUs, for any lengths and width.

  Widths are filled up with zeros, which change no score; keys that fill up a
  length belong to another segment, which no query reads.
  """
  from jax.experimental.pallas.ops.tpu import splash_attention as pallas

  width, length, keys = q.shape[3], q.shape[1], k.shape[1]
  q = q * jnp.asarray(width**-0.5, q.dtype)
  q, k, v = (_filled(x).swapaxes(1, 2) for x in (q, k, v))
  heads, rows = q.shape[1:3]
  one, two = _block(q.shape), _block(k.shape)
  sizes = pallas.BlockSizes(
    block_q=one,
    block_kv=two,
    block_q_dkv=one,
    block_kv_dkv=two,
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
    behind = (jnp.arange(k.shape[2]) >= keys).astype(jnp.int32)
    segments = pallas.SegmentIds(jnp.zeros(rows, jnp.int32), behind)
  out = jax.vmap(kernel, in_axes=(0, 0, 0, None))(q, k, v, segments)
  return out.swapaxes(1, 2)[:, :length, :, :width]


def _filled(x: Array) -> Array:
  """Length and width up to what a TPU's lanes divide."""
  more = [(0, -size % LANES) for size in (x.shape[1], x.shape[3])]
  return jnp.pad(x, [(0, 0), more[0], (0, 0), more[1]])


def _block(shape: tuple[int, ...]) -> int:
  blocks = BLOCKS if shape[3] <= WIDE else WIDE_BLOCKS
  return next(block for block in blocks if shape[2] % block == 0)


def with_attention_kernels(node: Any, sharding: Sharding) -> Any:
  """A task, model or network whose attention takes the machine's kernels.

  Every field `attention_backend` that is "auto" or names a kernel below `node`
  holds an `AttentionKernels` afterwards. Machines without kernels keep "auto".

  Raises:
    ValueError: a kernel of another machine is asked for.
  """
  if type(node) is tuple:
    found = tuple(with_attention_kernels(item, sharding) for item in node)
    is_same = all(map(operator.is_, found, node))
    return node if is_same else found
  if not dataclasses.is_dataclass(node) or isinstance(node, type):
    return node
  values = {
    field.name: _taken(getattr(node, field.name), sharding)
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


def _taken(attention_backend: Any, sharding: Sharding) -> Any:
  """What a field `attention_backend` holds on a machine."""
  home = KERNELS.get(sharding.platform)
  if attention_backend == "auto":
    return attention_backend if home is None else AttentionKernels(sharding)
  if attention_backend in KERNELS.values():
    if attention_backend != home:
      raise ValueError(
        f"attention_backend={attention_backend}: these devices "
        f"({sharding.platform}) have no such kernel; splash needs a "
        "TPU, cudnn a GPU; try auto"
      )
    return AttentionKernels(sharding, attention_backend)
  return attention_backend
