"""The number of repetitions of fault injection, scaled by FAULTS.

FAULTS=1 in the environment is the full number; the default is a tenth of it, so
that the slow tests take minutes. Results of a full run: benchmarks/faults.md.
"""

import os

FRACTION = float(os.environ.get("FAULTS", "0.1"))


def repeated(times, least=1):
  """Repetitions, of which `times` are the full number."""
  return max(least, round(times * FRACTION))
