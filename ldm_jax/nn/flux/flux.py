"""FLUX.1: a transformer over text and patches of latents as the backbone."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ldm_jax.fields.limits import Count, Natural
from ldm_jax.nn.attention import AttentionBackend
from ldm_jax.nn.conditioners.embedders import Condition
from ldm_jax.nn.dit.blocks import linear, modulated
from ldm_jax.nn.flux.blocks import EPSILON, DoubleBlock, SingleBlock
from ldm_jax.nn.flux.packing import SIDE, pack, unpack
from ldm_jax.nn.flux.positions import rotary_cos_sin
from ldm_jax.nn.initializers import normal
from ldm_jax.nn.layers import Remat, remat_policy, sinusoids
from ldm_jax.nn.operators.block_scan import apply_blocks

TIME_WIDTH = 256  # sinusoids of the time and of guidance, at every size
_MOST = 1000.0  # both are multiplied by it before


class Flux(nn.Module):
  """Text and patches of 2 x 2 latents, first apart, then as one sequence.

  FLUX.1 (Black Forest Labs 2024): `double_depth` blocks of two sequences that
  meet in attention (Esser et al. 2024), `single_depth` blocks of one sequence
  with attention and MLP side by side (Dehghani et al. 2023). It reads
  `Condition.context`, the tokens of text, `Condition.vector`, a pooled text,
  and concatenates `Condition.concat` with the latents: 80 channels of
  FLUX.1-Fill (16 of the masked image, 64 of the mask, one for each pixel of 8 x
  8), 16 of FLUX.1-Depth and -Canny. The defaults are FLUX.1-dev's. A new
  network outputs 0, and each of its blocks is the identity.

  Attributes:
    out_channels: of the output; those of the input are taken from the arrays.
    axes: features of a head that turn with the first coordinate, which is 0,
      with the row and with the column of a patch; even numbers, which add up to
      width / heads.
    embeds_guidance: reads `Condition.guidance`, the scale towards which it is
      distilled (Meng et al. 2023), as FLUX.1-dev does and FLUX.1-schnell does
      not; a condition without it has the scale 1.
    flow_steps: T of `Schedule("rectified_flow", steps=T)`. At t here
      s = (t + 1) / T; the network reads z = (1 - s) x0 + s eps =
      sqrt(s^2 + (1 - s)^2) x_t at the time s, and outputs eps - x0, the
      prediction "flow".
    is_scanned: one scan over the blocks of either kind, which compiles faster;
      it takes parameters as without it, or stacked by `stack_blocks`.
    remat: rematerialisation of each block; see `remat_policy`.
    dtype: of computation; norms, softmax, rotations, modulation and output stay
      float32.
  """

  out_channels: Count = 16
  width: Count = 3072
  double_depth: Natural = 19
  single_depth: Natural = 38
  heads: Count = 24
  axes: tuple[Count, ...] = (16, 56, 56)
  embeds_guidance: bool = True
  flow_steps: Count = 1000
  is_scanned: bool = False
  remat: Remat = "off"
  attention_backend: AttentionBackend = "auto"
  dtype: DTypeLike = "float32"

  def __post_init__(self):
    super().__post_init__()
    if self.width % self.heads:
      raise ValueError(
        f"width={self.width} must be a multiple of heads={self.heads}"
      )
    features = self.width // self.heads
    is_odd = any(axis % 2 for axis in self.axes)
    if len(self.axes) != 3 or is_odd or sum(self.axes) != features:
      raise ValueError(
        f"axes={self.axes} must be three even numbers that add up to the "
        f"{features} features of a head (width / heads)"
      )

  @property
  def size_multiple(self) -> int:
    """Latents' sides must be multiples of it: those of a patch."""
    return SIDE

  @property
  def scanned_blocks(self) -> list[list[str]]:
    """The names of the blocks of each scan; see `stack_blocks`."""
    runs = [self._names("double"), self._names("single")]
    return [names for names in runs if self.is_scanned and len(names) > 1]

  def _names(self, kind: str) -> list[str]:
    depth = self.double_depth if kind == "double" else self.single_depth
    return [f"{kind}_{i}" for i in range(depth)]

  @nn.compact
  def __call__(
    self,
    xt: Float[Array, "b h w c"],
    t: Float[Array, " b"],
    condition: Condition,
  ) -> Float[Array, "b h w d"]:
    _check(condition)
    time = (t.astype(jnp.float32) + 1) * (_MOST / self.flow_steps)
    s = time / _MOST
    z = xt * jnp.hypot(s, 1 - s)[:, None, None, None]
    if condition.concat is not None:
      z = jnp.concatenate([z, condition.concat.astype(z.dtype)], axis=-1)
    grid = z.shape[1] // SIDE, z.shape[2] // SIDE
    emb = self.embed(time, condition)
    tokens = [
      linear(x.astype(self.dtype), self.width, name=name, dtype=self.dtype)
      for name, x in (("context", condition.context), ("patches", pack(z)))
    ]
    length = tokens[0].shape[1]
    cos_sin = rotary_cos_sin(length, grid, self.axes)
    h = self.blocks(DoubleBlock, "double", tuple(tokens), emb, cos_sin)
    h = jnp.concatenate(h, axis=1)
    h = self.blocks(SingleBlock, "single", h, emb, cos_sin)
    return unpack(self.last_layer(h[:, length:], emb), grid)

  def embed(
    self, time: Float[Array, " b"], condition: Condition
  ) -> Float[Array, "b d"]:
    """The sum of an MLP each of time, guidance and pooled text; float32.

    Args:
      time: from 0 to 1000.
    """
    parts = {
      "time": sinusoids(time, TIME_WIDTH),
      "vector": condition.vector.astype(jnp.float32),
    }
    if self.embeds_guidance:
      scale = condition.guidance
      scale = jnp.ones_like(time) if scale is None else scale
      scale = _MOST * scale.astype(jnp.float32)
      parts["guidance"] = sinusoids(scale, TIME_WIDTH)
    init = normal(0.02)
    total = jnp.zeros(())
    for name, h in parts.items():
      for i in (1, 2):
        h = jax.nn.silu(h) if i == 2 else h
        layer = f"{name}_{i}"
        h = linear(h, self.width, name=layer, dtype="float32", kernel_init=init)
      total = total + h
    return total

  def blocks(
    self,
    kind: Callable[..., nn.Module],
    name: str,
    h: Any,
    emb: Float[Array, "b d"],
    cos_sin: Float[Array, "2 l half"],
  ) -> Any:
    """All blocks of a kind, one after another or in a scan."""
    kind = remat_policy(self.remat, kind)
    options = self.heads, self.attention_backend, self.dtype
    make = functools.partial(kind, *options)
    call = lambda block, h: block(h, emb, cos_sin)
    return apply_blocks(self, make, self._names(name), call, h)

  def last_layer(
    self, h: Float[Array, "b l d"], emb: Float[Array, "b d"]
  ) -> Float[Array, "b l e"]:
    """A modulated norm and a matrix, both of which start at zero; float32."""
    zero = {"dtype": "float32", "kernel_init": nn.initializers.zeros}
    emb = jax.nn.silu(emb)
    shift = linear(emb, self.width, name="shift", **zero)
    scale = linear(emb, self.width, name="scale", **zero)
    h = modulated(h, shift, scale, "layer", EPSILON)
    features = SIDE * SIDE * self.out_channels
    return linear(h, features, name="proj_out", **zero)


def _check(condition: Condition) -> None:
  """Raises ValueError for a condition that the network does not take."""
  for name in ("context", "vector"):
    if getattr(condition, name) is None:
      raise ValueError(
        f"FLUX reads a context, tokens of text, and a vector, a pooled text; "
        f"the condition has no {name}"
      )
  if condition.residuals is not None:
    raise ValueError("FLUX takes no residuals: its ControlNets are not read")
