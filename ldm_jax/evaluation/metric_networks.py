"""The networks that metrics look through, and what they say of pictures."""

import argparse
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8
from tqdm import tqdm

from ldm_jax.config import PerceptualWeights
from ldm_jax.data.transforms.augment import Augment
from ldm_jax.errors import ConfigError
from ldm_jax.evaluation.image_sets import ImageSet
from ldm_jax.evaluation.metrics.features import Extractor
from ldm_jax.evaluation.metrics.psnr import psnr
from ldm_jax.evaluation.metrics.resizing import World
from ldm_jax.evaluation.metrics.ssim import WIDTH, ssim
from ldm_jax.evaluation.reconstruct import filled
from ldm_jax.nn.encoders.inception import Features
from ldm_jax.nn.encoders.lpips import LPIPS, STRIDE
from ldm_jax.pixels import to_float
from ldm_jax.pretrained.metric_networks import clip_scores
from ldm_jax.pretrained.metric_networks import inception as inceptions
from ldm_jax.pretrained.metric_networks.lpips import SOURCES, perceptual
from ldm_jax.runtime.devices import processes
from ldm_jax.runtime.devices.sharding import Sharding

BLOCK = 64
Images = UInt8[np.ndarray, "b h w 3"]
Each = dict[str, Float[np.ndarray, " n"]]  # a number for every picture


class MetricNetworks:
  """Whatever the flags name, opened.

  Attributes:
    missing: by metric, what to give to have it.
  """

  def __init__(self, flags: argparse.Namespace, sharding: Sharding):
    """Reads the files.

    Raises:
      ConfigError: one is not there, or of the wrong kind.
      WeightsError: its weights are not what they should be.
    """
    self._sharding, self.missing = sharding, {}
    worlds = get_args(World) if flags.resize == "both" else (flags.resize,)
    self._extractors = {}
    if flags.inception:
      variables = inceptions.inception(flags.inception)
      self._extractors = {w: Extractor(variables, sharding, w) for w in worlds}
    else:
      need = f"--inception {inceptions.SOURCE}"
      self.missing |= dict.fromkeys(("fid", "sfid", "is", "kid"), need)
      self.missing |= dict.fromkeys(("precision", "recall"), need)
    self.clip = clip_scores.open_clip(flags.clip) if flags.clip else None
    if self.clip is None:
      need = f"--clip {clip_scores.SOURCE}"
      self.missing |= dict.fromkeys(("cmmd", "clip_score"), need)
    self._lpips = None
    if bool(flags.lpips_trunk) != bool(flags.lpips_heads):
      raise ConfigError("--lpips_trunk and --lpips_heads go together")
    if flags.lpips_trunk:
      weights = PerceptualWeights(flags.lpips_trunk, flags.lpips_heads)
      self._lpips = perceptual(LPIPS(), weights)
    else:
      files = ", --lpips_heads ".join(SOURCES.values())
      self.missing["lpips"] = f"--lpips_trunk {files}"

  def features(self, album: ImageSet) -> dict[World, Features]:
    """Inception's, by the world of resizing; none without Inception."""
    return {
      world: extract(_watched(album, f"{album.name}, {world}"))
      for world, extract in self._extractors.items()
    }

  def embeddings(self, album: ImageSet) -> Float[np.ndarray, "n p"]:
    """Of CLIP, the middle squares of pictures."""
    apply, size = _exactly(self.clip.image_embeddings), self.clip.vision.size
    cut = Augment(size, crop="center", flip=False)
    fitted = ImageSet(album.name, _Cut(album, cut), range(len(album)))
    return self._rows(
      functools.partial(apply, self.clip.variables),
      _watched(fitted, f"{album.name}, CLIP"),
    )

  def scores(
    self, embeddings: Float[np.ndarray, "n p"], captions: Sequence[str]
  ) -> Float[np.ndarray, " n"]:
    """CLIP scores of pictures with their captions."""
    ids = self.clip.tokenizer.encode(captions)
    apply = functools.partial(
      _exactly(self.clip.text_embeddings), self.clip.variables
    )
    blocks = (ids[i : i + BLOCK] for i in range(0, len(ids), BLOCK))
    read = jnp.asarray(self._rows(apply, blocks))
    return np.asarray(clip_scores.clip_scores(jnp.asarray(embeddings), read))

  def pairs(self, album: ImageSet, other: ImageSet) -> Each:
    """PSNR, SSIM and LPIPS of every picture with its fellow; `missing` gets
    what some of them are too small for.

    Raises:
      ValueError: two are not of one size.
    """
    found: dict[str, list[np.ndarray]] = {}
    fellows = other.blocks(1)
    for block in _watched(album, f"{album.name}, pairs"):
      beside = [next(fellows)[0] for _ in block]
      for two in beside:
        if two.shape != block[0].shape:
          sizes = f"{block[0].shape[:2]} and {two.shape[:2]}"
          raise ValueError(f"a pair of pictures of sizes {sizes}")
      for name, values in self._pair(block, np.stack(beside)).items():
        found.setdefault(name, []).append(values)
    each = {name: np.concatenate(parts) for name, parts in found.items()}
    for name, side in (("ssim", WIDTH), ("lpips", STRIDE)):
      if name not in self.missing and len(each.get(name, ())) < len(album):
        self.missing[name] = f"pictures of {side} x {side} pixels or more"
    return {n: values for n, values in each.items() if n not in self.missing}

  def _pair(self, one: Images, two: Images) -> Each:
    """Of one block."""
    floats = [np.asarray(to_float(jnp.asarray(x))) for x in (one, two)]
    found = {"psnr": psnr(*floats)}
    blocks = [np.stack([one, two], axis=1)]
    if min(one.shape[1:3]) >= WIDTH:
      found["ssim"] = self._rows(_ssim, blocks)
    if self._lpips is not None and min(one.shape[1:3]) >= STRIDE:
      found["lpips"] = self._rows(
        functools.partial(_lpips, self._lpips), blocks
      )
    return found

  def _rows(self, apply: Callable[[Any], jax.Array], blocks: Any) -> np.ndarray:
    """What `apply` makes of all blocks, each filled up to one size."""
    found = []
    for block in blocks:
      whole = self._sharding.distribute(filled(block, BLOCK))
      told = processes.gather(apply(whole))
      found.append(told[: len(block)])
    return np.concatenate(found)


class _Cut:
  """An album as a source of pictures of one size."""

  def __init__(self, album: ImageSet, augment: Augment):
    self._album, self._augment = album, augment

  def __getitem__(self, i: int) -> dict[str, Any]:
    return self._augment.center({"image": self._album[i]})


def _watched(album: ImageSet, what: str) -> Iterator[Images]:
  """Its blocks, with a bar."""
  with tqdm(total=len(album), unit="image", desc=what, leave=False) as bar:
    for block in album.blocks(BLOCK):
      yield block
      bar.update(len(block))


def _exactly(function: Callable) -> Callable:
  """Jitted, in all digits: accelerators round what they multiply."""

  def exact(*args: Any) -> Any:
    with jax.default_matmul_precision("highest"):
      return function(*args)

  return jax.jit(exact)


_ssim = _exactly(lambda pair: ssim(pair[:, 0], pair[:, 1]))
_lpips = _exactly(
  lambda variables, pair: LPIPS().apply(
    variables, to_float(pair[:, 0]), to_float(pair[:, 1])
  )
)
