"""How images are made: an order and conditions in, pictures out."""

from ldm_jax.sampling.settings import Given, Order, Said, Settings
from ldm_jax.sampling.studio import Studio

__all__ = ["Given", "Order", "Said", "Settings", "Studio"]
