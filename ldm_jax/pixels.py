"""Pixels as bytes, and as the networks' floats in [-1, 1]."""

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8


def to_float(images: UInt8[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
  """0..255 to [-1, 1]."""
  return images.astype(jnp.float32) / 127.5 - 1.0


def to_uint8(images: Float[Array, "b h w 3"]) -> UInt8[Array, "b h w 3"]:
  """[-1, 1] to 0..255, clipped and rounded half up, never truncated."""
  scaled = jnp.floor((images + 1.0) * 127.5 + 0.5)
  return jnp.clip(scaled, 0, 255).astype(jnp.uint8)
