"""LPIPS from the files of torchvision and of the lpips package."""

import os
from typing import Any

import jax
import numpy as np

from ldm_jax.config import PerceptualWeights
from ldm_jax.errors import ConfigError
from ldm_jax.nn.encoders.lpips import LPIPS, STRIDE
from ldm_jax.weights.files import read_torch
from ldm_jax.weights.naming.convert import convert, read_table

RANDOM = "random"

# What to look for, since nothing is downloaded.
SOURCES = {
  "trunk": "torchvision's vgg16-397923af.pth (528 MB, the SHA-256 begins with "
  "397923af)",
  "heads": "the lpips package's lpips/weights/v0.1/vgg.pth (7 KB)",
}


def perceptual(lpips: LPIPS, weights: PerceptualWeights) -> dict[str, Any]:
  """LPIPS's variables from the files the config names, as numpy arrays.

  Raises:
    ConfigError: a file is missing, or is of another width than the network.
    WeightsError: a file is unreadable, refused, or holds other tensors.
  """
  dummy = jax.ShapeDtypeStruct((1, STRIDE, STRIDE, 3), np.float32)
  shapes = jax.eval_shape(lpips.init, jax.random.key(0), dummy, dummy)
  params: dict[str, Any] = {}
  if RANDOM in (weights.trunk, weights.heads):
    zeros = np.zeros(dummy.shape, np.float32)
    params = dict(lpips.init(jax.random.key(0), zeros, zeros)["params"])
  if weights.trunk != RANDOM:
    params["trunk"] = _read(weights.trunk, "trunk", "vgg16")
  if weights.heads != RANDOM:
    params |= _read(weights.heads, "heads", "lpips")
  _check_shapes(params, shapes["params"], weights)
  return {"params": params}


def _read(path: str, name: str, table: str) -> dict[str, Any]:
  if not os.path.isfile(path):
    raise ConfigError(
      f"perceptual.{name}: there is no file {path!r}; it should be "
      f"{SOURCES[name]}. To train without it: "
      f"--config.perceptual.{name}=random"
    )
  return convert(read_table(table), read_torch(path))


def _check_shapes(params: Any, shapes: Any, weights: PerceptualWeights) -> None:
  found = jax.tree.map(np.shape, params)
  needed = jax.tree.map(lambda leaf: leaf.shape, shapes)
  if found != needed:
    raise ConfigError(
      f"{weights.trunk} and {weights.heads} hold VGG16 of width 64, the "
      "config's LPIPS is of another; set task.perceptual.width=64"
    )
