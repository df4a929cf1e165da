"""One image of all first stages: originals, reconstructions, errors."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import UInt8

from ldm_jax.runtime import image_files

Image = UInt8[np.ndarray, "_ _ 3"]

CELL = 192  # pixels of a side
AMPLIFIED = 4  # the errors that are shown


def comparison_sheet(
  originals: Mapping[str, Image],
  reconstructions: Mapping[str, Mapping[str, Image]],
) -> Image:
  """A row for each image; its reconstruction and error by each first stage.

  Errors are 4 |image - reconstruction|, clipped. Images larger than a cell are
  cut to their centre, smaller ones are enlarged by a whole factor.

  Args:
    originals: by what they show.
    reconstructions: by the name of the first stage, then as `originals`.
  """
  cells, labels = [], []
  for what, image in originals.items():
    cells.append(_cell(image))
    labels.append(f"{what}: original")
    for name, found in reconstructions.items():
      error = np.abs(image.astype(np.int16) - found[what])
      mse = np.square(error.astype(np.float64)).mean()
      psnr = 10 * np.log10(255**2 / mse) if mse else np.inf
      amplified = np.minimum(AMPLIFIED * error, 255).astype(np.uint8)
      cells += [_cell(found[what]), _cell(amplified)]
      labels += [f"{name}: {psnr:.1f} dB", f"{name}: error x {AMPLIFIED}"]
  columns = 1 + 2 * len(reconstructions)
  return image_files.image_grid(np.stack(cells), labels, columns)


def _cell(image: Image) -> Image:
  """`CELL` x `CELL` pixels, white where the image ends."""
  factor = max(1, CELL // max(image.shape[:2]))
  image = image.repeat(factor, 0).repeat(factor, 1)
  top, left = (max(0, (side - CELL) // 2) for side in image.shape[:2])
  image = image[top : top + CELL, left : left + CELL]
  cell = np.full((CELL, CELL, 3), 255, np.uint8)
  cell[: image.shape[0], : image.shape[1]] = image
  return cell
