"""What stage one trains, and what it only reads."""

from typing import Any

import flax.struct


class State(flax.struct.PyTreeNode):
  """The training state; `params` holds "autoencoder" and "logvar" (and
  "regularizers", where those have parameters), `ema` the autoencoder's moving
  average or None, `critic` the discriminator."""

  step: Any
  params: Any
  opt: Any
  ema: Any
  critic: Any
  critic_opt: Any


class Frozen(flax.struct.PyTreeNode):
  """Parameters that are not trained: those of LPIPS, or None, and of every
  regularizer."""

  perceptual: Any
  regularizers: Any = None
