"""A metric: colourfulness of samples and of the images they are compared to."""

import numpy as np


def colorfulness(samples, reference=None) -> dict[str, float]:
  """Mean M3 of both sets  (Hasler and Suesstrunk 2003, eq. 5)."""
  found = {"colorfulness": mean_m3(samples)}
  if reference is not None:
    found["colorfulness_reference"] = mean_m3(reference)
  return found


def mean_m3(images) -> float:
  """sqrt(var_rg + var_yb) + 0.3 sqrt(mean_rg^2 + mean_yb^2), averaged."""
  values = []
  for image in images:
    red, green, blue = np.moveaxis(image.astype(np.float64), -1, 0)
    opponents = (red - green, (red + green) / 2 - blue)
    spread = np.hypot(*(np.std(each) for each in opponents))
    offset = np.hypot(*(np.mean(each) for each in opponents))
    values.append(spread + 0.3 * offset)
  return float(np.mean(values))
