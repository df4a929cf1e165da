"""An autoencoder in tiles that equal the whole image to rounding.

A convolution of a tile needs a few more pixels around it; a group norm needs
mean and variance over the whole image. So the levels of high resolution are
computed in passes over the tiles: one for the moments of every norm, in which
the norms before it use the moments found, and one for the result, which is
stored. Attention and the lowest resolution are computed whole. A tile is a
strip of whole lines, so that it has neighbours above and below only.

Only the results of stages are stored. The decoder's are its residual blocks,
which replace their inputs in memory, up to the finest level; that level is one
stage, computed once per norm from the result of the level below, so that its
own activations, the largest by far, are never stored. The encoder's stages are
its levels.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from ldm_jax.nn.autoencoder import Autoencoder
from ldm_jax.nn.conv_stack.networks import Step
from ldm_jax.nn.conv_stack.strips import (
  ImageFunction,
  Store,
  Strips,
  image_moments,
  in_place,
  line_moments,
  over_strips,
)
from ldm_jax.nn.first_stage import FirstStage, Posterior
from ldm_jax.nn.layers import GroupNorm

LEAST_LINES = 8  # of a strip: fewer are mostly the lines around it

Path = tuple[str, ...]  # of a norm in the network


def has_exact_tiles(first_stage: FirstStage) -> bool:
  """Whether the functions of this module take it."""
  return isinstance(first_stage, Autoencoder)


def decode_in_tiles(
  autoencoder: Autoencoder,
  variables: Any,
  latents: Float[Array, "b h w c"],
  *,
  tile: int,
) -> Float[Array, "b H W 3"]:
  """`Autoencoder.decode` in less memory; equal to rounding.

  To be called inside a jitted function. H = h f and W = w f may be any
  multiples of f. See benchmarks/tiles.md for time and memory.

  Args:
    variables: of the autoencoder, {"params": ...}.
    latents: not scaled, as for `Autoencoder.decode`.
    tile: a tile has about tile^2 / 2 pixels of every image, in whole lines:
      where the finest level begins it has twice its channels.

  Raises:
    ValueError: the tile is not positive.
  """
  lines = _lines(tile, latents.shape[2] * autoencoder.stride)
  autoencoder = _plain(autoencoder)
  apply = functools.partial(autoencoder.apply, variables)
  quantize = lambda module, z: module.bottleneck.quantize(z)
  h = over_strips(
    lambda strip: apply(strip, method=quantize),
    Store.of(latents),
    Strips.of(latents.shape[1], max(1, lines // autoencoder.stride), 0),
  )
  run = lambda part, h: apply(h, part, method=lambda m, *h: m.decoder(*h))
  steps = apply(method=lambda module: module.decoder.steps())
  whole, *stages = _stages(run, steps, _decoder_parts(steps), lines)
  h = whole.function(h)
  if not stages:
    return h
  *stages, last = stages
  results = itertools.accumulate(
    stages, lambda x, stage: jax.eval_shape(stage.function, x), initial=h
  )
  store = Store.with_space(h, [result.shape[1:] for result in results])
  for stage in stages:
    store = in_place(*stage.over(store))
  return over_strips(*last.over(store))


def encode_in_tiles(
  autoencoder: Autoencoder,
  variables: Any,
  images: Float[Array, "b H W 3"],
  *,
  tile: int,
) -> Posterior:
  """`Autoencoder.encode` in less memory; see `decode_in_tiles`.

  Args:
    images: in [-1, 1].

  Raises:
    ValueError: the tile is not positive, or a side of the images is not a
      multiple of the stride.
  """
  autoencoder.latent_shape(*images.shape[1:3])
  autoencoder = _plain(autoencoder)
  apply = functools.partial(autoencoder.apply, variables)
  run = lambda part, h: apply(h, part, method=lambda m, *h: m.encoder(*h))
  steps = apply(method=lambda module: module.encoder.steps())
  lines = _lines(tile, images.shape[2])
  *stages, whole = _stages(run, steps, _encoder_parts(steps), lines)
  h = images
  for stage in stages:
    h = over_strips(*stage.over(Store.of(h)))
  return autoencoder.posterior(whole.function(h))


def _lines(tile: int, width: int) -> int:
  """Lines of tile^2 / 2 pixels, an even number."""
  if tile < 1:
    raise ValueError(f"a tile of {tile} pixels, needs at least 1; try 512")
  return tile * tile // (2 * width) // 2 * 2


def _plain(autoencoder: Autoencoder) -> Autoencoder:
  """The same network; remat is of gradients, and would hide norms' inputs.

  An `InpaintingAutoencoder` without an image is an `Autoencoder`.
  """
  off = lambda trunk: trunk and dataclasses.replace(trunk, remat="off")
  return Autoencoder(
    off(autoencoder.trunk),
    autoencoder.latent_channels,
    autoencoder.bottleneck,
    off(autoencoder.decoder_trunk),
    autoencoder.has_quant_conv,
    autoencoder.has_post_quant_conv,
  )


def _whole_level(steps: list[Step]) -> int:
  """The finest level that is computed whole: of attention, or the lowest."""
  lowest = max(step.level for step in steps)
  attention = [step.level for step in steps if step.reach is None]
  return min([lowest, *attention])


def _encoder_parts(steps: list[Step]) -> list[slice]:
  """Every level with the halving after it; at last what is whole."""
  levels = [step.level for step in steps]
  firsts = [levels.index(level) for level in range(_whole_level(steps) + 1)]
  return [slice(*pair) for pair in itertools.pairwise([*firsts, len(steps)])]


def _decoder_parts(steps: list[Step]) -> list[slice]:
  """At first what is whole, then every block, and the finest level at once.

  A level's first block, or the finest level, has the doubling before it.
  """
  whole, levels = _whole_level(steps), [step.level for step in steps]
  doublings = [
    i
    for i, (level, after) in enumerate(itertools.pairwise(levels))
    if after < level <= whole
  ]
  ends = [len(steps)]
  if doublings:
    ends = [
      end
      for end in range(doublings[0], len(steps))
      if levels[end] > 0 and end - 1 not in doublings
    ] + ends
  return [slice(*pair) for pair in itertools.pairwise([0, *ends])]


def _halo(steps: list[Step], level: int) -> int:
  """Lines of the input around those that lines of the result depend on.

  Args:
    level: of the result.
  """
  lines = 0
  for step in reversed(steps):
    lines += step.reach or 0
    if step.level > level:  # doubled
      lines = (lines + 1) // 2
    elif step.level < level:  # halved
      lines = 2 * lines
    level = step.level
  return lines + lines % 2


def _stages(
  run: Callable[[slice, Array], Array],
  steps: list[Step],
  parts: list[slice],
  lines: int,
) -> list["_Stage"]:
  """Of the parts of all steps; `lines` lines of the finest of input and result
  are computed at once.
  """
  levels = [*(step.level for step in steps), steps[-1].level]
  stages = []
  for part in parts:
    before, after = levels[part.start], levels[part.stop]
    halo, factor = _halo(steps[part], after), 2 if after < before else 1
    strip = max(LEAST_LINES, lines - 2 * factor * halo) // factor
    stages.append(_Stage(functools.partial(run, part), strip, halo))
  return stages


@dataclasses.dataclass(frozen=True)
class _Stage:
  """A part of a network between two results that are stored.

  Attributes:
    function: of the stage's input, or of a strip of it.
    lines: of a strip.
    halo: lines around it that the result depends on.
  """

  function: ImageFunction
  lines: int
  halo: int

  def over(self, store: Store) -> tuple[ImageFunction, Store, Strips]:
    """What `over_strips` takes; norms have the moments of whole images."""
    strips = Strips.of(store.height, self.lines, self.halo)
    if strips.count == 1:
      return self.function, store, strips
    moments = {}
    for path in self._norms(store.read(0, strips.window)):
      each = functools.partial(self._input_moments, moments, path)
      moments[path] = image_moments(over_strips(each, store, strips))

    def function(strip: Array) -> Array:
      with nn.intercept_methods(_given(moments)):
        return self.function(strip)

    return function, store, strips

  def _norms(self, strip: Array) -> list[Path]:
    """Paths of the norms, in the order in which they are applied."""
    paths = []
    note = lambda norm, x: paths.append(norm.path)
    with nn.intercept_methods(_given({}, note)):
      jax.eval_shape(self.function, strip)
    return paths

  def _input_moments(
    self, moments: dict[Path, Array], path: Path, strip: Array
  ) -> Float[Array, "b h 2 g"]:
    """Of the lines of a norm's input; XLA drops all that follows it."""
    found = []

    def note(norm: GroupNorm, x: Array) -> None:
      if norm.path == path:
        found.append(line_moments(x, norm.groups))

    with nn.intercept_methods(_given(dict(moments), note)):
      self.function(strip)
    return found[0]


def _given(
  moments: dict[Path, Array],
  note: Callable[[GroupNorm, Array], None] | None = None,
) -> Callable[..., Any]:
  """An interceptor of methods that gives norms their moments.

  Args:
    note: called with every norm and its input.
  """

  def answer(call: Callable, args: Any, options: Any, context: Any) -> Any:
    norm = context.module
    if not isinstance(norm, GroupNorm) or context.method_name != "__call__":
      return call(*args, **options)
    if note is not None:
      note(norm, args[0])
    return call(*args, moments=moments.get(norm.path))

  return answer
