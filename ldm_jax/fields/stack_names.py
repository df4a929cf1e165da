"""How a stack of equal blocks is called in a tree of parameters."""

import re
from collections.abc import Sequence

# The parameters of name_3, name_4, ..., name_9, stacked, are name_3_to_9.
STACK = re.compile(r"\b([a-z_]+)_(\d+)_to_(\d+)\b")


def stack_name(names: Sequence[str]) -> str:
  """Of the stack of such blocks: "block_0", ..., "block_9" are block_0_to_9."""
  return f"{names[0]}_to_{names[-1].rpartition('_')[2]}"
