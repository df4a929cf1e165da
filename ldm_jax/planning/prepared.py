"""Shapes of a step on what `ldm-jax prepare` has computed before training."""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from ldm_jax.errors import ConfigError
from ldm_jax.latents import encode_raw
from ldm_jax.nn.conditioners.clip_embedder import ClipEmbedder
from ldm_jax.nn.conditioners.embedded_text import (
  embed,
  embedded_name,
  null_variables,
)
from ldm_jax.nn.conditioners.embedders import TextEmbedder
from ldm_jax.nn.conditioners.t5_embedder import T5Embedder
from ldm_jax.training.batch_shapes import Shapes
from ldm_jax.training.denoiser import DenoiserTask

Prepared = Literal["latents", "texts"]

TEXTS = TextEmbedder, ClipEmbedder, T5Embedder  # what `prepare` computes


def with_prepared(
  task: Any, batch: Shapes, frozen: Any, prepared: Prepared
) -> tuple[Shapes, Any]:
  """The batch and the frozen parameters of such a step.

  Moments of latents take the place of images. With "texts" the outputs of
  frozen text encoders take the place of prompts, too, and of the encoders only
  the unconditional output is kept. Both are float16, as `prepare` stores them.

  Args:
    batch: with images and ids.
    frozen: `task.frozen_shapes(batch)`.

  Raises:
    ConfigError: it is no denoiser on latents, or no text encoder is frozen.
  """
  if not isinstance(task, DenoiserTask):
    raise ConfigError(
      f"{type(task).__name__} reads no prepared latents; leave prepared out "
      "(--prepared)"
    )
  batch = dict(batch)
  stage, images = task.first_stage, batch.pop("image")
  moments = lambda params, image: (
    encode_raw(stage, params, {"image": image}).moments
  )
  found = jax.eval_shape(moments, frozen.first_stage, images)
  batch["moments"] = jax.ShapeDtypeStruct(found.shape, jnp.float16)
  if prepared == "latents":
    return batch, frozen
  parts = [
    part
    for part in task.model.conditioners
    if isinstance(part, TEXTS) and part.is_frozen
  ]
  if not parts:
    raise ConfigError(
      "the config has no frozen text encoder; give --prepared=latents"
    )
  conditioners = dict(frozen.conditioners)
  for part in parts:
    name, ids = part.input_key, batch.pop(part.input_key)
    drop = jax.ShapeDtypeStruct(ids.shape[:1], bool)
    run = lambda *args, part=part: embed(part, *args)
    rows = jax.eval_shape(run, conditioners[name], ids, drop)
    for kind, row in rows.items():
      half = jax.ShapeDtypeStruct(row.shape, jnp.float16)
      batch[embedded_name(name, kind)] = half
    null = lambda *args, part=part: null_variables(part, *args)
    one = jax.ShapeDtypeStruct((1, *ids.shape[1:]), ids.dtype)
    conditioners[name] = jax.eval_shape(null, conditioners[name], one)
  return batch, frozen.replace(conditioners=conditioners)
