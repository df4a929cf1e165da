"""The networks of metrics, and what they compute of sets of images."""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from ldm_jax.config import PerceptualWeights
from ldm_jax.data.transforms.augment import Augment
from ldm_jax.evaluation.image_sets import ImageSet
from ldm_jax.evaluation.metrics.features import Extractor
from ldm_jax.evaluation.metrics.psnr import psnr
from ldm_jax.evaluation.metrics.resizing import ResizeMode, resized
from ldm_jax.evaluation.metrics.ssim import WIDTH, ssim
from ldm_jax.evaluation.reconstruct import padded
from ldm_jax.evaluation.request import EvaluationRequest
from ldm_jax.nn.encoders.dinov2 import DinoV2
from ldm_jax.nn.encoders.inception import Features
from ldm_jax.nn.encoders.lpips import LPIPS, STRIDE
from ldm_jax.pixels import to_float
from ldm_jax.pretrained.metric_networks import clip_scores, dinov2
from ldm_jax.pretrained.metric_networks import inception as inceptions
from ldm_jax.pretrained.metric_networks.lpips import SOURCES, perceptual
from ldm_jax.runtime.devices import processes
from ldm_jax.runtime.devices.sharding import Sharding
from ldm_jax.runtime.monitoring.progress import Progress

BLOCK = 64
DINO_PATCHES = 16  # along a side: 224 pixels
Images = UInt8[np.ndarray, "b h w 3"]
PerImage = dict[str, Float[np.ndarray, " n"]]  # a number for every image


class MetricNetworks:
  """The networks that a request names, on the devices.

  Attributes:
    missing: by metric, what to give to have it.
  """

  def __init__(self, request: EvaluationRequest, sharding: Sharding):
    """Reads the files.

    Raises:
      ConfigError: one does not exist, or is of another kind.
      WeightsError: its weights cannot be used.
    """
    self._sharding, self.missing = sharding, {}
    self._extractors = self._open_inception(request)
    self.clip = clip_scores.open_clip(request.clip) if request.clip else None
    if self.clip is None:
      needed = f"--clip {clip_scores.SOURCE}"
      self.missing |= dict.fromkeys(("cmmd", "clip_score"), needed)
    self._dino = None
    if request.dino:
      self._dino = _class_tokens(*dinov2.open_dinov2(request.dino))
    else:
      self.missing["fdd"] = f"--dino {dinov2.SOURCE}"
    self._lpips = None
    if request.lpips_trunk:
      weights = PerceptualWeights(request.lpips_trunk, request.lpips_heads)
      self._lpips = perceptual(LPIPS(), weights)
    else:
      files = ", --lpips_heads ".join(SOURCES.values())
      self.missing["lpips"] = f"--lpips_trunk {files}"

  def _open_inception(
    self, request: EvaluationRequest
  ) -> dict[ResizeMode, Extractor]:
    if not request.inception:
      needed = f"--inception {inceptions.SOURCE}"
      names = ("fid", "sfid", "is", "kid", "precision", "recall")
      self.missing |= dict.fromkeys(names, needed)
      return {}
    is_both = request.resize == "both"
    modes = get_args(ResizeMode) if is_both else (request.resize,)
    variables = inceptions.inception(request.inception)
    batch = min(BLOCK, request.num or BLOCK)
    open_one = lambda mode: Extractor(variables, self._sharding, mode, batch)
    return {mode: open_one(mode) for mode in modes}

  def features(self, images: ImageSet) -> dict[ResizeMode, Features]:
    """Inception's features by resizing mode; empty without Inception."""
    return {
      mode: extract(_with_progress(images, f"{images.name}, {mode}"))
      for mode, extract in self._extractors.items()
    }

  @property
  def has_dino(self) -> bool:
    """Whether `dino_features` can be computed."""
    return self._dino is not None

  def dino_features(self, images: ImageSet) -> Float[np.ndarray, "n d"]:
    """DINOv2's class tokens of images, resized to 16 x 16 patches."""
    blocks = _with_progress(images, f"{images.name}, DINOv2")
    return self._rows(self._dino, blocks)

  def embeddings(self, images: ImageSet) -> Float[np.ndarray, "n p"]:
    """CLIP's embeddings of the central squares of images."""
    apply, size = _exact(self.clip.image_embeddings), self.clip.vision.size
    crop = Augment(size, crop="center", flip=False)
    cropped = ImageSet(
      images.name, _CroppedSource(images, crop), range(len(images))
    )
    return self._rows(
      functools.partial(apply, self.clip.variables),
      _with_progress(cropped, f"{images.name}, CLIP"),
    )

  def clip_scores(
    self, embeddings: Float[np.ndarray, "n p"], captions: Sequence[str]
  ) -> Float[np.ndarray, " n"]:
    """100 max(cos, 0) of each image's embedding and its caption's."""
    ids = self.clip.tokenizer.encode(captions)
    apply = functools.partial(
      _exact(self.clip.text_embeddings), self.clip.variables
    )
    blocks = (ids[i : i + BLOCK] for i in range(0, len(ids), BLOCK))
    texts = jnp.asarray(self._rows(apply, blocks))
    return np.asarray(clip_scores.clip_scores(jnp.asarray(embeddings), texts))

  def pairwise(self, images: ImageSet, references: ImageSet) -> PerImage:
    """PSNR, SSIM and LPIPS of each image and the reference of its index.

    What images are too small for is added to `missing`.

    Raises:
      ValueError: an image and its reference differ in size.
    """
    found: dict[str, list[np.ndarray]] = {}
    others = references.blocks(1)
    for block in _with_progress(images, f"{images.name}, pairs"):
      paired = [next(others)[0] for _ in block]
      for reference in paired:
        if reference.shape != block[0].shape:
          sizes = f"{block[0].shape[:2]} and {reference.shape[:2]}"
          raise ValueError(f"the images of a pair are of sizes {sizes}")
      for name, values in self._pairwise(block, np.stack(paired)).items():
        found.setdefault(name, []).append(values)
    values = {name: np.concatenate(parts) for name, parts in found.items()}
    for name, side in (("ssim", WIDTH), ("lpips", STRIDE)):
      if name not in self.missing and len(values.get(name, ())) < len(images):
        self.missing[name] = f"images of {side} x {side} pixels or more"
    return {n: rows for n, rows in values.items() if n not in self.missing}

  def _pairwise(self, images: Images, references: Images) -> PerImage:
    """The same of one block."""
    both = images, references
    floats = [np.asarray(to_float(jnp.asarray(x))) for x in both]
    found = {"psnr": psnr(*floats)}
    blocks = [np.stack(both, axis=1)]
    if min(images.shape[1:3]) >= WIDTH:
      found["ssim"] = self._rows(_ssim, blocks)
    if self._lpips is not None and min(images.shape[1:3]) >= STRIDE:
      found["lpips"] = self._rows(
        functools.partial(_lpips, self._lpips), blocks
      )
    return found

  def _rows(
    self,
    apply: Callable[[Any], jax.Array],
    blocks: Iterable[np.ndarray],
  ) -> np.ndarray:
    """`apply` to all blocks, each padded to one size."""
    found = []
    for block in blocks:
      batch = self._sharding.distribute(padded(block, BLOCK))
      found.append(processes.gather(apply(batch))[: len(block)])
    return np.concatenate(found)


def _class_tokens(
  module: DinoV2, variables: Any
) -> Callable[[jax.Array], jax.Array]:
  """A function of images in bytes; compiles once for each size."""
  side = DINO_PATCHES * module.patch

  def apply(variables: Any, images: jax.Array) -> jax.Array:
    levels = resized(images, side, "clean")
    return module.apply(variables, levels / 127.5 - 1).class_token

  return functools.partial(_exact(apply), variables)


class _CroppedSource:
  """A set of images as a source of images of one size."""

  def __init__(self, images: ImageSet, augment: Augment):
    self._images, self._augment = images, augment

  def __getitem__(self, i: int) -> dict[str, Any]:
    return self._augment.center({"image": self._images[i]})


def _with_progress(images: ImageSet, label: str) -> Iterator[Images]:
  """The blocks of a set, with a progress bar."""
  with Progress(label, len(images), "images") as bar:
    for block in images.blocks(BLOCK):
      yield block
      bar.update(len(block))


def _exact(function: Callable) -> Callable:
  """Jitted with matrix products in full float32: accelerators round them."""

  def exact(*args: Any) -> Any:
    with jax.default_matmul_precision("highest"):
      return function(*args)

  return jax.jit(exact)


_ssim = _exact(lambda pair: ssim(pair[:, 0], pair[:, 1]))
_lpips = _exact(
  lambda variables, pair: LPIPS().apply(
    variables, to_float(pair[:, 0]), to_float(pair[:, 1])
  )
)
