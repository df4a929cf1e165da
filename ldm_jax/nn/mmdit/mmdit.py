"""MMDiT: the transformer of Stable Diffusion 3 and 3.5 as the backbone."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ldm_jax.fields.limits import Count, Natural
from ldm_jax.nn.attention import AttentionBackend
from ldm_jax.nn.conditioners.embedders import Condition
from ldm_jax.nn.dit.blocks import linear, modulated
from ldm_jax.nn.dit.patches import PatchEmbedding, unpatchify
from ldm_jax.nn.initializers import normal
from ldm_jax.nn.layers import Remat, remat_policy, sinusoids
from ldm_jax.nn.mmdit.blocks import EPSILON, JointBlock
from ldm_jax.nn.mmdit.positions import axis_table, centre_positions
from ldm_jax.nn.operators.block_scan import apply_blocks

TIME_WIDTH = 256  # sinusoids of the time, at every size
TIMES = 1000  # the time is fed as a number up to it


class MMDiT(nn.Module):
  """Tokens of patches and of texts through joint blocks  (Esser et al. 2024).

  `Condition.context` are the tokens of texts, of any width;
  `Condition.vector`, the pooled texts, joins the embedding of the time through
  an MLP. The default is SD 3 medium. A new network outputs 0, and each of its
  blocks is the identity.

  Attributes:
    out_channels: of the output; those of the input are taken from the arrays.
    patch: side of a patch, in latents.
    dual_blocks: numbers of the blocks whose image tokens also attend to
      themselves alone; SD 3.5 medium's are the first 13.
    is_qk_normed: see `StreamAttention`; true of SD 3.5.
    takes_vector: whether the condition has a vector, of pooled texts.
    max_size: patches per side that have positions; smaller images take those in
      the centre.
    grid: patches per side of the images over which positions are spread: row i
      has the position i * grid / max_size. They are fixed numbers, stored with
      the weights as `fixed_positions`, which training leaves as they are.
    flow_steps: T of `Schedule("rectified_flow", steps=T)`: the network reads
      z = (1 - s) x0 + s eps at the time 1000 s, s = (t + 1) / T, so
      z = sqrt(s^2 + (1 - s)^2) x_t, and predicts dz/ds = eps - x0, the
      prediction "flow". None feeds x_t and t as they are.
    is_scanned: one scan over each run of blocks of one kind, which compiles
      faster; it takes parameters as without it, or stacked by `stack_blocks`.
    remat: rematerialisation of each block; see `remat_policy`.
    dtype: of computation; norms, softmax, modulation and output stay float32.
  """

  out_channels: Count = 16
  width: Count = 1536
  depth: Count = 24
  heads: Count = 24
  patch: Count = 2
  dual_blocks: tuple[Natural, ...] = ()
  is_qk_normed: bool = False
  takes_vector: bool = True
  max_size: Count = 192
  grid: Count = 64
  flow_steps: Count | None = TIMES
  is_scanned: bool = False
  remat: Remat = "off"
  attention_backend: AttentionBackend = "auto"
  dtype: DTypeLike = "float32"

  def __post_init__(self):
    super().__post_init__()
    if self.width % self.heads or self.width % 4:
      raise ValueError(
        f"width={self.width} must be a multiple of heads={self.heads} and of 4"
      )
    wrong = [i for i in self.dual_blocks if i >= self.depth]
    if wrong:
      raise ValueError(
        f"dual_blocks={self.dual_blocks} must be numbers below "
        f"depth={self.depth}"
      )

  @property
  def size_multiple(self) -> int:
    """Latents' sides must be multiples of it: those of a patch."""
    return self.patch

  @property
  def largest_side(self) -> int:
    """Of latents that have positions."""
    return self.max_size * self.patch

  @nn.compact
  def __call__(
    self,
    xt: Float[Array, "b h w c"],
    t: Float[Array, " b"],
    condition: Condition,
  ) -> Float[Array, "b h w d"]:
    self._check(condition)
    if self.flow_steps is not None:
      s = (t.astype(jnp.float32) + 1) / self.flow_steps
      xt = xt * jnp.hypot(s, 1 - s)[:, None, None, None]
      t = TIMES * s
    emb = self.embed(t, condition.vector)
    if condition.concat is not None:
      xt = jnp.concatenate([xt, condition.concat.astype(xt.dtype)], axis=-1)
    rows_columns = xt.shape[1] // self.patch, xt.shape[2] // self.patch
    embedding = PatchEmbedding(
      self.patch, self.width, dtype=self.dtype, name="patches"
    )
    h = embedding(xt) + self.positions(rows_columns)
    h = h.astype(self.dtype)
    context = linear(
      condition.context.astype(self.dtype),
      self.width,
      name="context",
      dtype=self.dtype,
    )
    h = self.last_layer(self.blocks(h, context, emb), emb)
    return unpatchify(h, self.patch, rows_columns)

  def _check(self, condition: Condition) -> None:
    """Raises ValueError for a condition that the network does not take."""
    for name in ("guidance", "residuals"):
      if getattr(condition, name) is not None:
        raise ValueError(f"an MMDiT takes no {name}; leave it out")
    if condition.context is None:
      raise ValueError(
        "an MMDiT needs a context, the tokens of a text; use a conditioner "
        "that returns one"
      )
    if self.takes_vector != (condition.vector is not None):
      has = "has no" if condition.vector is None else "has a"
      raise ValueError(
        f"the condition {has} vector, and this MMDiT has "
        f"takes_vector={self.takes_vector}; set it to {not self.takes_vector}, "
        "or change the conditioners' vectors"
      )

  def embed(
    self, t: Float[Array, " b"], vector: Float[Array, "b v"] | None
  ) -> Float[Array, "b d"]:
    """MLP(sinusoids(t)) + MLP(vector), in float32."""
    inputs = {"time": sinusoids(t, TIME_WIDTH)}
    if vector is not None:
      inputs["vector"] = vector.astype(jnp.float32)
    options = {"dtype": "float32", "kernel_init": normal(0.02)}
    total = 0.0
    for name, h in inputs.items():
      h = linear(h, self.width, name=f"{name}_1", **options)
      h = linear(jax.nn.silu(h), self.width, name=f"{name}_2", **options)
      total = total + h
    return total

  def positions(self, rows_columns: tuple[int, int]) -> Float[Array, "l d"]:
    """Of the patches, without a gradient."""
    table = self.param(
      "fixed_positions",
      lambda _: axis_table(self.max_size, self.width, self.grid),
    )
    return centre_positions(jax.lax.stop_gradient(table), rows_columns)

  @property
  def scanned_blocks(self) -> list[list[str]]:
    """The names of the blocks of each scan; see `stack_blocks`."""
    runs = [names for _, names in self._runs()]
    return [names for names in runs if self.is_scanned and len(names) > 1]

  def _runs(self) -> list[tuple[tuple[bool, bool], list[str]]]:
    """Equal blocks in a row: whether they are dual and the last, and names."""
    kind = lambda i: (i in self.dual_blocks, i == self.depth - 1)
    groups = itertools.groupby(range(self.depth), kind)
    return [(kinds, [f"block_{i}" for i in run]) for kinds, run in groups]

  def blocks(
    self,
    h: Float[Array, "b l d"],
    context: Float[Array, "b m d"],
    emb: Float[Array, "b d"],
  ) -> Float[Array, "b l d"]:
    """All blocks, one after another or in scans over equal ones."""
    block_type = remat_policy(self.remat, JointBlock)
    for kinds, names in self._runs():
      options = self.heads, 4 * self.width, *kinds, self.is_qk_normed
      options += self.attention_backend, self.dtype
      make = functools.partial(block_type, *options)
      call = lambda block, tokens: block(*tokens, emb)
      h, context = apply_blocks(self, make, names, call, (h, context))
    return h

  def last_layer(
    self, h: Float[Array, "b l d"], emb: Float[Array, "b d"]
  ) -> Float[Array, "b l e"]:
    """A modulated norm and a matrix, both of which start at zero; float32."""
    zero = {"dtype": "float32", "kernel_init": nn.initializers.zeros}
    emb = jax.nn.silu(emb)
    shift, scale = (
      linear(emb, self.width, name=f"last_{name}", **zero)
      for name in ("shift", "scale")
    )
    h = modulated(h, shift, scale, "layer", EPSILON)
    features = self.patch**2 * self.out_channels
    return linear(h, features, name="proj_out", **zero)
