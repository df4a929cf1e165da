"""How a stack of equal blocks is called in a tree of parameters."""

import re
from collections.abc import Sequence

# A name that no module has: stacked_block_3_to_9 for block_3, ..., block_9.
STACK = re.compile(r"\bstacked_(\w+)_(\d+)_to_(\d+)\b")


def stack_name(names: Sequence[str]) -> str:
  """Of the stack of blocks that are called by a word and a number in a row."""
  return f"stacked_{names[0]}_to_{names[-1].rpartition('_')[2]}"
