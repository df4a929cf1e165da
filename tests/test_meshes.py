"""Every mesh computes what one device computes: gradients and parameters."""

import dataclasses
import functools
import itertools
import math
import unittest.mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P
from networks import random_state

from ldm_jax.diffusion.loss import DenoisingLoss
from ldm_jax.diffusion.schedule import Schedule
from ldm_jax.errors import ConfigError
from ldm_jax.latent_diffusion import LatentDiffusion
from ldm_jax.nn.autoencoder import Autoencoder, ConvStack
from ldm_jax.nn.conditioners.embedders import (
  ClassEmbedder,
  Condition,
  LayoutEmbedder,
  SizeEmbedder,
  TextEmbedder,
)
from ldm_jax.nn.conditioners.spatial import (
  DepthMap,
  LowResolution,
  MaskedImage,
  NeighbourEmbeddings,
  SegmentationEmbedder,
)
from ldm_jax.nn.discriminator import PatchDiscriminator
from ldm_jax.nn.dit.dit import DiT
from ldm_jax.nn.encoders.lpips import LPIPS
from ldm_jax.nn.encoders.text_encoder import TextEncoder
from ldm_jax.nn.flux.flux import Flux
from ldm_jax.nn.lora import LoRA
from ldm_jax.nn.mmdit.mmdit import MMDiT
from ldm_jax.nn.operators.choice import operators
from ldm_jax.nn.unet import AttentionPlan, UNet
from ldm_jax.runtime.devices.activation_sharding import constrain_activations
from ldm_jax.runtime.devices.sharding import MeshShape, Sharding
from ldm_jax.runtime.optimizer import Optimizer
from ldm_jax.training.autoencoder import AutoencoderTask
from ldm_jax.training.checks import check_mesh
from ldm_jax.training.denoiser import DenoiserTask

# data, fsdp, tensor, context
MESHES = [
  (8, 1, 1, 1),
  (1, 8, 1, 1),
  (2, 4, 1, 1),
  (2, 2, 2, 1),
  (1, 2, 4, 1),
  (4, 1, 2, 1),
  (4, 1, 1, 2),
]
SLOW = pytest.mark.slow
QUICK, FAST = [(2, 2, 2, 1)], ("two",)
STEPS, DISC_START, BATCH, SIDE = 10, 3, 16, 16


class Descent(Optimizer):
  """Plain gradient descent; its state holds the last gradient."""

  def build(self):
    return optax.chain(optax.trace(0.0), optax.scale(-self.rate))

  def current_rate(self, state):
    return jnp.float32(self.rate)


STACK = ConvStack(8, (1, 2), 1, groups=4)
STAGE_ONE = AutoencoderTask(
  autoencoder=Autoencoder(STACK, 3),
  perceptual=None,
  discriminator=PatchDiscriminator(width=8, layers=2),
  optimizer=Descent(1e-5),
  critic_optimizer=Descent(1e-2),
  disc_start=DISC_START,
  ema_decay=0.9,
)
WITH_LPIPS = dataclasses.replace(STAGE_ONE, perceptual=LPIPS(width=8))
STAGE_TWO = DenoiserTask(
  model=LatentDiffusion(
    first_stage=Autoencoder(STACK, 3),
    unet=UNet(3, 16, (1,), 1, AttentionPlan((0,), heads=2), groups=4),
    conditioners=(
      TextEmbedder(TextEncoder(24, 16, 1, 2, 8, length=6)),
      ClassEmbedder(7, 16),
    ),
  ),
  optimizer=Descent(1e-2),
)
# All kinds of conditioners at once, and two levels.
ENCODER = TextEncoder(24, 16, 1, 2, 8, length=6)
EVERYTHING = dataclasses.replace(
  STAGE_TWO,
  model=LatentDiffusion(
    first_stage=Autoencoder(STACK, 3),
    unet=UNet(
      3, 16, (1, 2), 1, AttentionPlan((0, 1), heads=2), groups=4, vector="mlp"
    ),
    conditioners=(
      TextEmbedder(ENCODER),
      ClassEmbedder(7, 16),
      LayoutEmbedder(ENCODER),
      NeighbourEmbeddings(16),
      SegmentationEmbedder(
        5, 16, 2, "context", positions=16, input_key="marks"
      ),
      SegmentationEmbedder(5, 3, 1),
      MaskedImage(),
      LowResolution(),
      DepthMap(2),
      SizeEmbedder(width=4),
    ),
  ),
)


# Scanned blocks of every option, with the labels' vector.
TRANSFORMER = dataclasses.replace(
  STAGE_TWO,
  model=LatentDiffusion(
    first_stage=Autoencoder(STACK, 3),
    unet=DiT(
      out_channels=3,
      width=32,
      depth=2,
      heads=4,
      registers=2,
      mlp="swiglu",
      is_qk_normed=True,
      is_scanned=True,
      remat="full",
    ),
    conditioners=(ClassEmbedder(7, 32, joins="vector"),),
  ),
)

FLUX = dataclasses.replace(
  STAGE_TWO,
  model=LatentDiffusion(
    first_stage=Autoencoder(STACK, 3),
    unet=Flux(3, 32, 2, 2, 4, (2, 2, 4), is_scanned=True, remat="full"),
    conditioners=(ClassEmbedder(7, 32, joins="both"),),
    schedule=Schedule("rectified_flow"),
    prediction="flow",
  ),
  loss=DenoisingLoss("flow"),
)


# Scans over two dual blocks and two plain ones, with texts in both inputs.
MULTIMODAL = dataclasses.replace(
  STAGE_TWO,
  model=LatentDiffusion(
    first_stage=Autoencoder(STACK, 3),
    unet=MMDiT(
      out_channels=3,
      width=32,
      depth=5,
      heads=4,
      dual_blocks=(0, 1),
      is_qk_normed=True,
      max_size=6,
      grid=4,
      is_scanned=True,
      remat="full",
    ),
    conditioners=(TextEmbedder(ENCODER, is_pooled=True),),
    schedule=Schedule("rectified_flow"),
    prediction="flow",
  ),
  loss=DenoisingLoss("flow"),
)


def draw(step):
  rng = np.random.default_rng(step)
  integers = lambda high, *shape: rng.integers(
    0, high, (BATCH, *shape), np.int32
  )
  real = lambda *shape: rng.standard_normal((BATCH, *shape), np.float32)
  plane = (SIDE, SIDE)
  return {
    "image": integers(256, *plane, 3).astype(np.uint8),
    "tokens": 4 + integers(20, 6),
    "label": integers(7),
    "layout": integers(24, 6),
    "neighbours": real(4, 16),
    "marks": integers(5, *plane).astype(np.uint8),
    "segmap": integers(5, *plane).astype(np.uint8),
    "mask": integers(2, *plane) == 1,
    "low": integers(256, 8, 8, 3).astype(np.uint8),
    "depth": real(*plane),
    "sizes": integers(64, 6).astype(np.float32),
  }


def frozen_of(task):
  """Random frozen parameters, the same for every mesh."""
  shapes = task.frozen_shapes(draw(0))
  leaves, tree = jax.tree.flatten(shapes)
  rng = np.random.default_rng(1)
  drawn = [
    rng.normal(0, 1 / max(1, np.prod(s.shape[:-1])) ** 0.5, s.shape)
    if s.shape
    else 1.3
    for s in leaves
  ]
  return jax.tree.unflatten(tree, [np.float32(x) for x in drawn])


TASKS = {
  "one": STAGE_ONE,
  "lpips": WITH_LPIPS,
  "two": STAGE_TWO,
  "everything": EVERYTHING,
  "dit": TRANSFORMER,
  "mmdit": MULTIMODAL,
  "flux": FLUX,
}
MESHES_OF = {
  "lpips": QUICK,
  "dit": [(8, 1, 1, 1), *QUICK, (4, 1, 1, 2), (1, 2, 2, 2)],
  "mmdit": [(8, 1, 1, 1), *QUICK, (1, 2, 2, 2)],
  "flux": [(8, 1, 1, 1), *QUICK, (1, 2, 2, 2)],
}


@functools.cache
def history(task_name, *mesh):
  """(losses, gradients, last parameters) of STEPS steps on a mesh."""
  task = TASKS[task_name]
  count = math.prod(mesh)
  sharding = MeshShape(*mesh).build(jax.devices()[:count])
  sharding = dataclasses.replace(sharding, min_size=256)
  frozen = frozen_of(task)
  frozen = jax.device_put(frozen, sharding.tree_shardings(frozen))
  # Most gradients of an initial state are zero.
  state = random_state(task, draw(0), frozen)
  shardings = sharding.tree_shardings(state)
  state = jax.device_put(state, shardings)
  if mesh[1] * mesh[2] > 1:
    sharded = [x for x in jax.tree.leaves(state) if not x.is_fully_replicated]
    assert len(sharded) > 20
  step = jax.jit(
    constrain_activations(task.step, sharding),
    donate_argnums=0,
    out_shardings=(shardings, sharding.replicated),
  )
  losses, gradients = [], []
  for i in range(STEPS):
    key = jax.random.fold_in(jax.random.key(1), i)
    # Layers that leave tokens an axis for context are those of accelerators.
    with operators("xla" if mesh[3] > 1 else "auto"):
      state, metrics = step(state, frozen, sharding.put_batch(draw(i)), key)
    losses.append({k: float(v) for k, v in metrics.items()})
    trace = {"model": state.opt[0].trace}
    if isinstance(task, AutoencoderTask):
      trace["critic"] = state.critic_opt[0].trace
    gradients.append(jax.tree.map(np.asarray, trace))
  return losses, gradients, jax.tree.map(np.asarray, state.params)


def norm(tree):
  """The Euclidean norm of all leaves, without a compiled program."""
  square = lambda leaf: np.sum(np.square(leaf, dtype=np.float64))
  return sum(map(square, jax.tree.leaves(tree))) ** 0.5


def distance(found, expected):
  """|a - b| / |b| over all leaves of a tree."""
  difference = jax.tree.map(np.subtract, found, expected)
  return norm(difference) / max(norm(expected), 1e-30)


@pytest.mark.parametrize(
  ("task", "mesh"),
  [
    pytest.param(
      task,
      mesh,
      id=f"{task}-{'x'.join(map(str, mesh))}",
      # The mesh of three axes is enough for the quick tests.
      marks=() if mesh in QUICK and task in FAST else pytest.mark.slow,
    )
    for task in TASKS
    for mesh in MESHES_OF.get(task, MESHES)
  ],
)
def test_every_mesh_equals_one_device(task, mesh):
  losses, gradients, params = history(task, *mesh)
  alone, one_gradients, one_params = history(task, 1, 1, 1, 1)
  for step in range(STEPS):
    for network in one_gradients[step]:
      found, expected = gradients[step][network], one_gradients[step][network]
      if network == "critic" and step < DISC_START:
        assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(found))
        continue
      # Later steps start from parameters that already differ by rounding.
      limit = 1e-5 if step == 0 else 1e-4
      assert distance(found, expected) <= limit, (step, network)
      floor = 1e-5 * norm(expected)
      for a, b in zip(
        jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
      ):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=floor)
    for name, value in alone[step].items():
      np.testing.assert_allclose(
        losses[step][name], value, rtol=1e-4 if name == "d_weight" else 1e-5
      )
  if task in ("one", "lpips"):
    assert alone[DISC_START - 1]["discriminator_loss"] == 0
    assert alone[DISC_START]["discriminator_loss"] > 0
  assert distance(params, one_params) < 1e-5


@pytest.mark.parametrize(
  "task", ["mmdit", *(pytest.param(n, marks=SLOW) for n in ("dit", "flux"))]
)
def test_context_divides_the_work_of_transformers(task):
  """Each of two devices computes its half of the tokens."""
  module = TASKS[task].model.unet.clone(is_scanned=False, remat="off")
  shape, f32 = (2, 8, 8, 3), jnp.float32
  array = lambda *shape: jax.ShapeDtypeStruct(shape, f32)
  needed = {
    "dit": Condition(vector=array(2, 32)),
    "mmdit": Condition(context=array(2, 6, 16), vector=array(2, 16)),
    "flux": Condition(context=array(2, 6, 16), vector=array(2, 16)),
  }
  inputs = array(*shape), array(2), needed[task]
  variables = jax.eval_shape(module.init, jax.random.key(0), *inputs)
  flops = []
  for context in (1, 2):
    mesh = MeshShape(1, 1, 1, context).build(jax.devices()[:context])
    latents = mesh.array_sharding("image", shape)
    latents = jax.ShapeDtypeStruct(shape, f32, sharding=latents)
    apply = constrain_activations(module.apply, mesh)
    with operators("xla"):  # as on accelerators
      lowered = jax.jit(apply).lower(variables, latents, *inputs[1:])
    flops.append(lowered.compile().cost_analysis()["flops"])
  assert flops[1] < 0.65 * flops[0]


def test_fsdp_shards_the_largest_divisible_axis():
  sharding = MeshShape(2, 4).build()
  sharding = dataclasses.replace(sharding, min_size=64)
  assert sharding.spec("a/kernel", (3, 3, 64, 128)) == P(
    None, None, None, "fsdp"
  )
  assert sharding.spec("a/kernel", (3, 3, 128, 30)) == P(None, None, "fsdp")
  assert sharding.spec("a/bias", (32,)) == P()
  assert sharding.spec("a/odd", (9, 9, 9)) == P()
  assert sharding.spec("pool/positions", (64, 64)) == P()


T, F = "tensor", "fsdp"


@pytest.mark.parametrize(
  "path, shape, expected",
  [
    ("unet/mid_attention/block_0/attention1/q/kernel", (32, 64), (F, T)),
    ("mu/unet/block_0/attention2/out/kernel", (64, 32), (T, F)),
    ("conditioners/tokens/encoder/attention_0/v/kernel", (8, 64), (F, T)),
    ("unet/down_0_block_0/conv1/kernel", (3, 3, 32, 64), (None, None, F, T)),
    ("unet/down_0_block_0/conv2/kernel", (3, 3, 64, 64), (None, None, T, F)),
    ("unet/down_0_block_0/conv1/bias", (64,), (T,)),
    ("unet/up_1_upsample/kernel", (3, 3, 64, 64), (None, None, None, F)),
    ("params/encoder/mid_attention/q/kernel", (64, 64), (None, F)),
    ("unet/block_0/ff/up/kernel", (30, 66), (F, T)),
    ("unet/block_0/gate/kernel", (30, 66), (F, T)),
    ("unet/block_0/ff/up/kernel", (30, 65), (F,)),  # 2 does not divide 65
  ],
)
def test_tensor_shards_the_axes_of_the_rules(path, shape, expected):
  sharding = dataclasses.replace(MeshShape(2, 2, 2).build(), min_size=1)
  assert sharding.spec(path, shape) == P(*expected)


def test_local_rows_are_those_of_the_devices_of_a_process():
  for mesh in ((8,), (2, 2, 2), (2, 1, 4), (4, 1, 1, 2)):
    sharding = MeshShape(*mesh).build()
    np.testing.assert_array_equal(sharding.local_rows(16), np.arange(16))
    batch = draw(0)
    for name, array in sharding.put_batch(batch).items():
      np.testing.assert_array_equal(array, batch[name])
      shard = array.addressable_shards[0].data.shape
      assert shard[0] == BATCH // sharding.batch_shards
      rest = list(batch[name].shape[1:])
      if len(mesh) == 4 and name in ("image", "segmap", "mask", "low", "depth"):
        rest[0] //= 2
      assert list(shard[1:]) == rest


def test_impossible_meshes_and_batches_are_refused():
  with pytest.raises(ValueError, match="needs 6 devices but there are 8"):
    MeshShape(3, 2).build()
  with pytest.raises(ValueError, match="there are 8"):
    MeshShape(None, 3).build()
  with pytest.raises(ValueError, match="needs a multiple of 16 devices"):
    MeshShape(None, 16).build()
  with pytest.raises(ValueError, match="tensor=3 x context=1 needs"):
    MeshShape(tensor=3).build()
  with pytest.raises(ValueError, match="try 8"):
    MeshShape().build().check_batch(6)
  with pytest.raises(ValueError, match="times 2 slices; try 16"):
    MeshShape().build().check_batch(8, 2)
  assert isinstance(MeshShape(None, 2).build(), Sharding)


@pytest.mark.parametrize("mesh", [(2, 1, 2, 2), (2, 2, 1, 2)])
def test_convolutions_are_not_trained_where_their_gradients_are_wrong(mesh):
  """Also not those that a LoRA is added to."""
  sharding = MeshShape(*mesh).build()
  batch = jax.eval_shape(lambda: draw(0))
  lora = dataclasses.replace(STAGE_TWO, lora=LoRA(2))
  for task in (STAGE_ONE, STAGE_TWO, lora):
    with pytest.raises(ConfigError, match="exclude each other"):
      check_mesh(task, batch, sharding)
    check_mesh(task, batch, MeshShape(4, 1, 1, 2).build())
  check_mesh(TRANSFORMER, batch, sharding)


def torus(side, slices):
  """side x side chips of an absent TPU, per slice."""
  coordinates = itertools.product(range(slices), range(side), range(side))
  return [
    unittest.mock.Mock(
      spec=jax.Device,
      id=number,
      platform="tpu",
      device_kind="TPU v5 lite",
      coords=(x, y, 0),
      core_on_chip=0,
      slice_index=index,
      process_index=number // 4,
    )
    for number, (index, y, x) in enumerate(coordinates)
  ]


@pytest.mark.parametrize("slices", [1, 2])
@pytest.mark.parametrize("inner", [(4, 1), (2, 2), (16, 1), (8, 4)])
def test_a_mesh_axis_may_be_a_part_of_a_torus_axis(inner, slices):
  chips = torus(8, slices)
  mesh = MeshShape(None, *inner).build(chips).mesh
  assert sorted(chip.id for chip in mesh.devices.flat) == list(
    range(64 * slices)
  )
  groups = mesh.devices.reshape(-1, inner[0] * inner[1])
  for part in groups:
    assert len({chip.slice_index for chip in part}) == 1


@pytest.mark.slow
def test_gradient_accumulation_is_independent_of_the_mesh():
  """Each slice has the same examples on every mesh."""
  task = dataclasses.replace(STAGE_TWO, accumulate=2)
  frozen = frozen_of(task)
  found = []
  for count in (1, 8):
    sharding = MeshShape(count, 1).build(jax.devices()[:count])
    batch = sharding.put_batch(draw(0))
    state = jax.jit(task.init)(jax.random.key(0), batch, frozen)
    state, metrics = jax.jit(task.step)(state, frozen, batch, jax.random.key(1))
    found.append((float(metrics["loss"]), state.opt[0].trace))
  np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-5)
  gradients = [jax.tree.map(np.asarray, trace) for _, trace in found]
  assert distance(gradients[1], gradients[0]) < 1e-5


def test_every_device_initialises_its_part_of_a_kernel():
  """With fsdp=8 every device has an eighth of each large kernel."""
  sharding = dataclasses.replace(MeshShape(1, 8).build(), min_size=1)
  frozen, batch = frozen_of(STAGE_TWO), sharding.put_batch(draw(0))
  shapes = jax.eval_shape(STAGE_TWO.init, jax.random.key(0), batch, frozen)
  shardings = sharding.tree_shardings(shapes)
  # Kernels that no one looks at are not compiled.
  part = lambda state: state.ema["unet"]["params"]["mid_block_0"]
  init = lambda *inputs: part(STAGE_TWO.init(*inputs))
  sharded = jax.jit(init, out_shardings=part(shardings))
  state = sharded(jax.random.key(0), batch, frozen)
  kernel = state["conv1"]["kernel"]
  assert kernel.addressable_shards[0].data.size == kernel.size // 8
  same = jax.jit(init)(jax.random.key(0), draw(0), frozen)
  jax.tree.map(np.testing.assert_array_equal, state, same)
