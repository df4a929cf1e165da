"""No device gathers an activation of the whole batch, forward or backward."""

import dataclasses
import re

import jax
import pytest

from ldm_jax.nn.autoencoder import Autoencoder, ConvStack
from ldm_jax.nn.conditioners.embedders import Condition
from ldm_jax.nn.discriminator import PatchDiscriminator
from ldm_jax.nn.encoder_unet import EncoderUNet
from ldm_jax.nn.encoders.text_encoder import TextEncoder
from ldm_jax.nn.unet import AttentionPlan, UNet
from ldm_jax.runtime.devices.activation_sharding import constrain_activations
from ldm_jax.runtime.devices.sharding import MeshShape

BATCH = 48  # no axis of a kernel has this size
MESHES = [(2, 4, 1), (1, 8, 1), (2, 2, 2), (1, 4, 2)]  # data, fsdp, tensor
IMAGE, LATENT = ("float32", 16, 16, 3), ("float32", 8, 8, 4)
TIME, CONTEXT = ("float32",), ("float32", 6, 32)


def unet(depths=(0, 0), **options):
  plan = {"heads": 2} | {k: options.pop(k) for k in ("kind",) if k in options}
  return UNet(4, 64, (1, 2), 1, AttentionPlan(depths, **plan), **options)


def conditioned(network):
  return network, lambda xt, t, c: (xt, t, Condition(context=c))


def plain(network):
  return network, lambda xt, t, c: (xt, t, Condition())


KINDS = {
  "residual": plain(unet()),
  "scale_shift": plain(unet(modulation="scale_shift")),
  "resampling in blocks": plain(unet(resampling="block")),
  "remat": plain(unet(remat="full")),
  "pixel attention": plain(unet((1, 1), kind="plain")),
  "cross-attention": conditioned(unet((1, 1))),
  "encoder": (
    EncoderUNet(4, 64, (1, 2), 1, AttentionPlan((0, 0), heads=2), classes=9),
    lambda xt, t, c: (xt, t),
  ),
}


def gathered(network, arguments, sharding, is_constrained=True):
  """Shapes of all-gathered arrays with the rows of the whole global batch."""
  place = lambda spec: jax.ShapeDtypeStruct(
    (BATCH, *spec[1:]), spec[0], sharding=sharding.batch
  )
  arguments = jax.tree.map(
    place, arguments, is_leaf=lambda x: isinstance(x, tuple) and x[0] in DTYPES
  )
  shapes = jax.eval_shape(network.init, jax.random.key(0), *arguments)
  params = jax.tree.map(
    lambda leaf, home: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=home
    ),
    shapes,
    sharding.tree_shardings(shapes),
  )

  def loss(params, *arguments):
    mutable = [name for name in params if name != "params"]
    found = network.apply(params, *arguments, mutable=mutable or False)
    return sum(
      (x.astype("float32") ** 2).mean() for x in jax.tree.leaves(found)
    )

  loss = constrain_activations(loss, sharding) if is_constrained else loss
  text = jax.jit(jax.grad(loss)).lower(params, *arguments).compile().as_text()
  kernels = re.findall(r"= \w+\[[\d,]+\]\S* all-gather\(", text)
  assert len(kernels) > 5  # fsdp gathers kernels, so the pattern still fits
  rows = rf"= \w+\[(?:\d,)?{BATCH},[\d,]+\]\S* all-gather\("
  return [line for line in re.findall(rows, text) if line.count(",") > 1]


DTYPES = ("float32", "int32")


def built(mesh):
  return dataclasses.replace(MeshShape(*mesh).build(), min_size=1)


def cases(names):
  """Every name on every mesh; all but one are slow."""
  for name in names:
    for mesh in MESHES:
      is_quick = name == next(iter(names)) and mesh == MESHES[0]
      marks = () if is_quick else pytest.mark.slow
      yield pytest.param(name, mesh, marks=marks, id=f"{name}-{mesh}")


@pytest.mark.parametrize("kind, mesh", list(cases(KINDS)))
def test_blocks_of_a_unet_keep_their_rows(kind, mesh):
  network, arguments = KINDS[kind]
  assert not gathered(network, arguments(LATENT, TIME, CONTEXT), built(mesh))


# The first is the quickest; the autoencoder is of the blocks of a U-Net.
OTHERS = {
  "discriminator": (PatchDiscriminator(width=64, layers=2), (IMAGE,)),
  "autoencoder": (Autoencoder(ConvStack(64, (1, 2), 1), 4), (IMAGE, LATENT)),
  "text encoder": (TextEncoder(24, 64, 2, 2, 32, length=6), (("int32", 6),)),
}


@pytest.mark.parametrize("name, mesh", list(cases(OTHERS)))
def test_other_networks_keep_their_rows(name, mesh):
  network, arguments = OTHERS[name]
  assert not gathered(network, arguments, built(mesh))


def test_without_constraints_rows_are_gathered():
  """Shows that the test above can fail."""
  network, arguments = KINDS["residual"]
  found = gathered(
    network, arguments(LATENT, TIME, CONTEXT), built((2, 4, 1)), False
  )
  assert found
