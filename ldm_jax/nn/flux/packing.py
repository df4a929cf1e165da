"""Patches of 2 x 2 latents as tokens, channel by channel, and back."""

from jaxtyping import Array, Float

SIDE = 2  # of a patch, in every published FLUX


def pack(x: Float[Array, "b h w c"]) -> Float[Array, "b l d"]:
  """Tokens of 2 x 2 latents, row by row; d = 4 c.

  Within a token the order is channel, row, column, so that the tokens of
  concatenated channels are concatenated tokens.

  Raises:
    ValueError: the patches do not tile x.
  """
  b, h, w, c = x.shape
  if h % SIDE or w % SIDE:
    raise ValueError(
      f"latents of {h} x {w} are not tiled by patches of {SIDE} x {SIDE}; give "
      f"sides that are multiples of {SIDE}"
    )
  x = x.reshape(b, h // SIDE, SIDE, w // SIDE, SIDE, c)
  return x.transpose(0, 1, 3, 5, 2, 4).reshape(b, -1, SIDE * SIDE * c)


def unpack(
  tokens: Float[Array, "b l d"], grid: tuple[int, int]
) -> Float[Array, "b h w c"]:
  """The inverse of `pack`; `grid` has the rows and columns of patches."""
  b, rows, columns = tokens.shape[0], *grid
  x = tokens.reshape(b, rows, columns, -1, SIDE, SIDE)
  x = x.transpose(0, 1, 4, 2, 5, 3)
  return x.reshape(b, rows * SIDE, columns * SIDE, -1)
