"""Patches of latents as tokens, and back."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float


def patchify(x: Float[Array, "b h w c"], patch: int) -> Float[Array, "b l d"]:
  """Tokens of patch x patch pixels, row by row; d = patch * patch * c.

  Within a token the order is row, column, channel.

  Raises:
    ValueError: the patches do not tile x.
  """
  b, h, w, c = x.shape
  if h % patch or w % patch:
    raise ValueError(
      f"latents of {h} x {w} are not tiled by patches of {patch} x {patch}; "
      f"give sides that are multiples of {patch}"
    )
  x = x.reshape(b, h // patch, patch, w // patch, patch, c)
  return x.swapaxes(2, 3).reshape(b, -1, patch * patch * c)


def unpatchify(
  tokens: Float[Array, "b l d"], patch: int, grid: tuple[int, int]
) -> Float[Array, "b h w c"]:
  """The inverse of `patchify`; `grid` has the rows and columns of patches."""
  b, rows, columns = tokens.shape[0], *grid
  x = tokens.reshape(b, rows, columns, patch, patch, -1).swapaxes(2, 3)
  return x.reshape(b, rows * patch, columns * patch, -1)


class PatchEmbedding(nn.Module):
  """Every patch times one matrix, stored as a convolution of stride `patch`.

  Initialised as a matrix over the whole patch (Glorot's uniform).
  """

  patch: int
  width: int
  dtype: DTypeLike = "float32"

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b l d"]:
    tokens = patchify(x.astype(self.dtype), self.patch)

    def init(key, shape):
      matrix = tokens.shape[-1], self.width
      return nn.initializers.xavier_uniform()(key, matrix).reshape(shape)

    shape = (self.patch, self.patch, x.shape[-1], self.width)
    kernel = self.param("kernel", init, shape)
    bias = self.param("bias", nn.initializers.zeros, (self.width,))
    matrix = kernel.reshape(-1, self.width).astype(self.dtype)
    return jnp.dot(tokens, matrix) + bias.astype(self.dtype)
