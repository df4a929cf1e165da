"""Which leaves of a state are sharded along which axis, by name."""

import re
from collections.abc import Sequence

Rules = Sequence[tuple[str, int | None]]

IN, OUT = -2, -1  # axes of a kernel of any rank

# Channels inside residual blocks; the time is added to them there.
CONVOLUTION_RULES: Rules = (
  (r"(^|/)(conv1|emb)/(kernel|bias)$", OUT),
  (r"(^|/)conv2/kernel$", IN),
)

# (pattern of a leaf's path, axis that `tensor` shards); the first match wins.
# Of a pair of layers the features between them are sharded (Shoeybi et al.
# 2019, section 3): the first's outputs and the second's inputs, so that only
# the second's results are summed over devices.
RULES: Rules = (
  # One head: sharding its width would sum a whole matrix of logits.
  (r"coder/mid_attention/", None),
  # Heads of attention.
  (r"(^|/)(q|k|v)/(kernel|bias)$", OUT),
  (r"(^|/)out/kernel$", IN),
  # Feed-forwards, of the U-Net, of DiT and of text encoders.
  (r"(^|/)(up(_\d+)?|gate)/(kernel|bias)$", OUT),
  (r"(^|/)down(_\d+)?/kernel$", IN),
  *CONVOLUTION_RULES,
)

# Kernels that are stored as convolutions and computed as matrices.
MATRICES = r"(^|/)patches/kernel$"

# Read at every position of every row: gathering costs more than replicating.
REPLICATED = r"positions$"

# Leaves of fewer elements are replicated: a gather costs more than it saves.
MIN_SIZE = 4096


def tensor_axis(rules: Rules, path: str, rank: int) -> int | None:
  """The axis of a leaf that `tensor` shards, or None."""
  for pattern, axis in rules:
    if re.search(pattern, path):
      return axis if axis is not None and -axis <= rank else None
  return None
