"""Initialising stage two from a trained model."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ldm_jax.data.text.clip_prompts import ClipPrompts
from ldm_jax.data.text.tokenizers import Tokenizer
from ldm_jax.errors import WeightsError
from ldm_jax.loaded_model import LoadedModel
from ldm_jax.training.compiled_steps import compiled_for_one_call
from ldm_jax.training.denoiser import DenoiserTask

CONV_IN = ("unet", "params", "conv_in", "kernel")


def tokenizer_of(start: LoadedModel) -> Tokenizer | None:
  """The tokenizer of its (first) text encoder, or None."""
  if isinstance(start.tokenizer, ClipPrompts):
    return start.tokenizer.syntaxes[0].tokenizer
  return start.tokenizer


def initialised_where_absent(
  task: DenoiserTask,
  start: LoadedModel,
  key: jax.Array,
  batch: Any,
  frozen: Any,
) -> dict:
  """`task.init_params`, with shapes for what is not initialised here.

  Values have the trained conditioners that `start` lacks, and nothing else: a
  second U-Net with random parameters would need the memory of the first,
  unsharded.
  """
  shapes = jax.eval_shape(task.init_params, key, batch, frozen)
  conditioners = shapes["conditioners"]
  known = {*start.params.conditioners, *task.model.frozen_conditioners}
  names = [n for n in conditioners.keys() - known if conditioners[n]]

  def missing(*args: Any) -> dict:
    found = task.init_params(*args)["conditioners"]
    return {name: found[name] for name in names}

  if not names:
    return shapes
  initialise = jax.jit(missing, compiler_options=compiled_for_one_call())
  values = initialise(key, batch, frozen)
  return shapes | {"conditioners": conditioners | values}


def initial_params(task: DenoiserTask, initial: Any, start: LoadedModel) -> Any:
  """Parameters of `start` in the architecture of `task`.

  An input convolution with more input channels than before gets zeros for the
  new ones, so that the widened network computes the same as before.
  Conditioners that the start lacks keep their random initialisation.

  Args:
    initial: parameters of U-Net and conditioners, or their shapes; random ones
      where the start lacks them.

  Raises:
    WeightsError: the start is another network than the config's.
  """
  params = start.params
  conditioners = {
    name: params.conditioners.get(name, random)
    for name, random in initial["conditioners"].items()
  }
  found = {"unet": params.unet, "conditioners": conditioners}
  coordinates = 4 * getattr(task.model.unet, "octaves", 0)
  if _has(initial, CONV_IN) and _has(found, CONV_IN):
    kernel, channels = _at(found, CONV_IN), _at(initial, CONV_IN).shape[2]
    found = _with(found, CONV_IN, widened(kernel, channels, coordinates))
  _check_same(found, initial)
  return found


def widened(kernel: Any, channels: int, last: int = 0) -> Any:
  """A kernel [h w in out] widened to `channels` inputs, zeros for the new ones.

  They are inserted before the `last` of the present inputs.

  Raises:
    WeightsError: it has more already.
  """
  new = channels - kernel.shape[2]
  if new < 0:
    raise WeightsError(
      f"the model to start from reads {kernel.shape[2]} channels, the config's "
      f"only {channels}"
    )
  height, width, before, out = kernel.shape
  zeros = jnp.zeros((height, width, new, out), kernel.dtype)
  first, rest = kernel[:, :, : before - last], kernel[:, :, before - last :]
  return jnp.concatenate([first, zeros, rest], axis=2)


def _has(tree: Any, path: tuple[str, ...]) -> bool:
  try:
    return _at(tree, path) is not None
  except (KeyError, TypeError):
    return False


def _at(tree: Mapping[str, Any], path: tuple[str, ...]) -> Any:
  for name in path:
    tree = tree[name]
  return tree


def _with(tree: Mapping[str, Any], path: tuple[str, ...], leaf: Any) -> Any:
  name, *rest = path
  return {**tree, name: _with(tree[name], tuple(rest), leaf) if rest else leaf}


def _check_same(found: Any, initial: Any) -> None:
  """Raises WeightsError unless both trees have the same names and shapes."""

  def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    name = lambda path: "/".join(entry.key for entry in path)
    return {name(path): tuple(leaf.shape) for path, leaf in leaves}

  theirs, ours = shapes(found), shapes(initial)
  odd = sorted(
    name
    for name in theirs.keys() | ours.keys()
    if theirs.get(name) != ours.get(name)
  )
  if odd:
    raise WeightsError(
      f"the model to start from is another one than the config's: {len(odd)} "
      f"parameters differ, {odd[0]} first ({theirs.get(odd[0], 'absent')} "
      f"there, {ours.get(odd[0], 'absent')} here); write its architecture "
      "into the config"
    )
