"""How often faults are repeated: FAULTS=1 in the environment is in full.

Less is the default, so that the slow tier ends while somebody waits; what a
full run found is in benchmarks/faults.md.
"""

import os

SHARE = float(os.environ.get("FAULTS", "0.1"))


def repeated(times, least=1):
  """How often, of `times` in full."""
  return max(least, round(times * SHARE))
