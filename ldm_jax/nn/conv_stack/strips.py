"""Functions of images, computed for one strip of lines after the other.

A strip is read with `halo` more lines on either side and the same number of
lines of the result is cut off. Reading stops at the image's border, where a
convolution's own zeros are right, so every line is as that of the whole image
if it depends on at most `halo` lines above and below.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ldm_jax.nn.operators.transforms import zeros_after

# Of images or of a strip of them; lines are the second axis of both.
ImageFunction = Callable[[Array], Array]
Shape = tuple[int, int, int]  # h w c


@dataclasses.dataclass(frozen=True)
class Store:
  """Lines of images, at the end of an array that may have space for more.

  Attributes:
    array: [b n ...], a line or a part of a line in every [...].
    shape: h w c of the images.
  """

  array: Array
  shape: Shape

  @classmethod
  def of(cls, x: Float[Array, "b h w c"]) -> "Store":
    """The images themselves, without more space."""
    return cls(x, x.shape[1:])

  @classmethod
  def with_space(
    cls, x: Float[Array, "b h w c"], shapes: Sequence[Shape]
  ) -> "Store":
    """A copy of images that has space for images of any of the shapes."""
    shapes = [x.shape[1:], *shapes]
    unit = math.gcd(*(width * channels for _, width, channels in shapes))
    count = max(math.prod(shape) for shape in shapes) // unit
    empty = cls(zeros_after(x, (len(x), count, unit)), x.shape[1:])
    return empty.write(0, x)

  @property
  def height(self) -> int:
    """h."""
    return self.shape[0]

  def read(self, first: ArrayLike, lines: int) -> Float[Array, "b n w c"]:
    """`lines` lines from the first on."""
    start, each = self._place(first)
    found = lax.dynamic_slice_in_dim(self.array, start, lines * each, 1)
    return found.reshape(len(found), lines, *self.shape[1:])

  def write(self, first: ArrayLike, strip: Float[Array, "b n w c"]) -> "Store":
    """The store with other lines from the first on."""
    start, each = self._place(first)
    b, lines, *_ = strip.shape
    strip = strip.reshape(b, lines * each, *self.array.shape[2:])
    array = lax.dynamic_update_slice_in_dim(self.array, strip, start, 1)
    return Store(array, self.shape)

  def _place(self, first: ArrayLike) -> tuple[ArrayLike, int]:
    """Where a line begins along the array's second axis; length of a line."""
    height, width, channels = self.shape
    each = width * channels // math.prod(self.array.shape[2:])
    return self.array.shape[1] - height * each + first * each, each


@dataclasses.dataclass(frozen=True)
class Strips:
  """How images are cut: strips of about equal height, and lines around them.

  The last strip begins earlier, so that it is as high as the others.
  """

  height: int
  lines: int
  halo: int

  @classmethod
  def of(cls, height: int, lines: int, halo: int) -> "Strips":
    """Strips of about `lines` lines, an even number.

    Args:
      halo: lines above and below that a line of the result depends on. Even,
        as is the height, if the result has half as many lines.
    """
    count = math.ceil(height / lines)
    return cls(height, 2 * math.ceil(height / count / 2), halo)

  @property
  def window(self) -> int:
    """Lines that are read for a strip; all, if there is but one."""
    return min(self.height, self.lines + 2 * self.halo)

  @property
  def count(self) -> int:
    """How many strips there are."""
    if self.window == self.height:
      return 1
    return math.ceil(self.height / self.lines)

  def first(self, i: ArrayLike) -> Array:
    """First line of strip i."""
    return jnp.minimum(i * self.lines, self.height - self.lines)

  def top(self, i: ArrayLike) -> Array:
    """First line that is read for strip i."""
    return jnp.clip(self.first(i) - self.halo, 0, self.height - self.window)


def over_strips(
  function: ImageFunction, store: Store, strips: Strips
) -> Float[Array, "b h2 w2 d"]:
  """`function` of images, strip by strip; the results are joined.

  Args:
    function: of [b n w c] to [b n2 w2 d], n2 a fixed multiple or fraction of n.
  """
  if strips.count == 1:
    return function(store.read(0, store.height))
  function = jax.jit(function)  # traced once
  result = jax.eval_shape(lambda: function(store.read(0, strips.window)))
  scaled = lambda line: line * result.shape[1] // strips.window
  shape = (result.shape[0], scaled(store.height), *result.shape[2:])

  def put(i: ArrayLike, out: Array) -> Array:
    first, top = strips.first(i), strips.top(i)
    strip = function(store.read(top, strips.window))
    strip = lax.dynamic_slice_in_dim(
      strip, scaled(first - top), scaled(strips.lines), 1
    )
    return lax.dynamic_update_slice_in_dim(out, strip, scaled(first), 1)

  start = zeros_after(store.array, shape).astype(result.dtype)
  return lax.fori_loop(0, strips.count, put, start)


def in_place(function: ImageFunction, store: Store, strips: Strips) -> Store:
  """`over_strips`, whose results take the images' place in the store.

  Results grow from the front towards lines that are still to be read, and never
  reach them: they end where those begin, or before. The lines around a strip
  that are overwritten are taken from the strip before.

  Args:
    function: whose result is as large as its input, or larger.
  """
  if strips.count == 1:
    result = function(store.read(0, store.height))
    return Store(store.array, result.shape[1:]).write(0, result)
  window = strips.window
  function = jax.jit(function)  # traced once
  result = jax.eval_shape(lambda: function(store.read(0, window)))
  scaled = lambda line: line * result.shape[1] // window
  shape = (scaled(store.height), *result.shape[2:])

  def put(i: ArrayLike, held: tuple[Array, Array]) -> tuple[Array, Array]:
    array, before = held
    first, top, last = strips.first(i), strips.top(i), jnp.maximum(i - 1, 0)
    done = jnp.where(i > 0, strips.first(last) + strips.lines - top, 0)
    is_done = jnp.arange(window)[None, :, None, None] < done
    old = jnp.roll(before, strips.top(last) - top, axis=1)
    strip = jnp.where(is_done, old, Store(array, store.shape).read(top, window))
    result = lax.dynamic_slice_in_dim(
      function(strip), scaled(first - top), scaled(strips.lines), 1
    )
    return Store(array, shape).write(scaled(first), result).array, strip

  start = store.array, store.read(0, window)
  return Store(lax.fori_loop(0, strips.count, put, start)[0], shape)


def line_moments(
  x: Float[Array, "b h w c"], groups: int
) -> Float[Array, "b h 2 g"]:
  """Mean and variance of every line and group of channels, in float32."""
  b, height, _, channels = x.shape

  def group_means(values: Array) -> Array:
    each = values.mean(2).reshape(b, height, groups, channels // groups)
    return each.mean(-1)

  x = x.astype(jnp.float32)
  means = group_means(x)
  around = means.repeat(channels // groups, -1)[:, :, None]
  return jnp.stack([means, group_means((x - around) ** 2)], axis=2)


def image_moments(
  lines: Float[Array, "b h 2 g"],
) -> Float[Array, "2 b g"]:
  """Mean and variance of images by those of their lines.

  Var[x] = E[Var[x | line]] + Var[E[x | line]], with deviations from the mean
  itself: no difference of large squares.
  """
  means, variances = jnp.moveaxis(lines, 2, 0)
  mean = means.mean(1)
  between = ((means - mean[:, None]) ** 2).mean(1)
  return jnp.stack([mean, variances.mean(1) + between])
