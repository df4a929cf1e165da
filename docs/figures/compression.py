"""How the cost of a denoiser falls with the factor f of the first stage.

Operations of one evaluation of a U-Net on an image of 256 x 256 pixels, counted
in its jaxpr; nothing is computed.
"""

import jax
import jax.numpy as jnp
import style
from style import plt

from ldm_jax.nn.conditioners.embedders import Condition
from ldm_jax.nn.unet import AttentionPlan, UNet
from ldm_jax.runtime.monitoring import flops

SIDE = 256
FACTORS = (1, 2, 4, 8, 16, 32)
CHANNELS = {1: 3, 2: 2, 4: 3, 8: 4, 16: 16, 32: 64}


def operations(factor: int) -> int:
  """Of a U-Net of 256 channels with attention at its two coarser levels."""
  channels, side = CHANNELS[factor], SIDE // factor
  plan = AttentionPlan((0, 1, 1), heads=None, head_width=32, kind="plain")
  unet = UNet(channels, 256, (1, 2, 4), 2, plan)
  xt = jax.ShapeDtypeStruct((1, side, side, channels), jnp.float32)
  t, condition = jnp.zeros(1), Condition()
  params = jax.eval_shape(unet.init, jax.random.key(0), xt, t, condition)
  return flops.count(unet.apply, params, xt, t, condition)


def main() -> None:
  """Two panels: operations of a step, and numbers per image."""
  figure, (left, right) = plt.subplots(1, 2, figsize=(7.5, 2.8))
  names = ["pixels", *(f"f = {factor}" for factor in FACTORS[1:])]
  costs = [operations(factor) / 1e9 for factor in FACTORS]
  left.bar(names, costs)
  left.set_yscale("log")
  left.set_title("operations of one evaluation, 1e9")
  for i, cost in enumerate(costs):
    left.text(i, cost * 1.15, f"{cost:,.0f}", ha="center", color=style.INK)
  numbers = [(SIDE // f) ** 2 * CHANNELS[f] for f in FACTORS]
  right.bar(names, numbers, color=style.COLOURS[1])
  right.set_yscale("log")
  right.set_title("numbers per image of 256 x 256")
  for i, number in enumerate(numbers):
    right.text(i, number * 1.1, f"{number:,}", ha="center", color=style.INK)
  left.set_ylim(bottom=1)
  right.set_ylim(bottom=1000)
  for axis in (left, right):
    axis.tick_params(axis="x", rotation=30)
    axis.set_ylim(top=axis.get_ylim()[1] * 2)
  figure.tight_layout()
  style.save(figure, "compression")


if __name__ == "__main__":
  main()
