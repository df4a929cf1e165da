"""Plans report the memory, operations and collectives of the real program."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from ldm_jax import config
from ldm_jax.cli import plan
from ldm_jax.cli.exit_codes import CommandError
from ldm_jax.config import override
from ldm_jax.diffusion.loss import DenoisingLoss
from ldm_jax.diffusion.schedule import Schedule
from ldm_jax.latent_diffusion import LatentDiffusion
from ldm_jax.nn.autoencoder import Autoencoder, ConvStack
from ldm_jax.nn.conditioners.clip_embedder import ClipEmbedder
from ldm_jax.nn.conditioners.embedders import Condition
from ldm_jax.nn.conditioners.t5_embedder import T5Embedder
from ldm_jax.nn.encoders.clip_text import ClipText
from ldm_jax.nn.encoders.t5 import T5Encoder
from ldm_jax.nn.flux.flux import Flux
from ldm_jax.planning.memory_needs import largest_batch
from ldm_jax.planning.programs import training_program
from ldm_jax.planning.request import LargestBatch
from ldm_jax.runtime.devices import aot
from ldm_jax.runtime.devices.sharding import MeshShape
from ldm_jax.runtime.monitoring import flops
from ldm_jax.training import batch_shapes
from ldm_jax.training.denoiser import DenoiserTask

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"
SMALL = [
  "--config.task.model.unet.channels=32",
  "--config.task.model.unet.multipliers=1,2",
  "--config.task.model.unet.blocks=1",
  "--config.task.model.unet.attention.depths=0,1",
  "--config.task.model.conditioners.0.width=64",
  "--config.data.augment.size=64",
]
CLASSES = [
  f"--config={CONFIGS / 'ldm' / 'imagenet256_f8.py'}",
  f"--first_stage={CONFIGS / 'ldm' / 'kl_f8.py'}",
]

PROGRAM = """
  %all-gather.3 = bf16[8,4]{1,0} all-gather(%p.1), dimensions={0}
  ROOT %r = f32[16]{0} all-reduce(f32[16]{0} %x), to_apply=%add
  %s = (f32[2,8]{1,0}, f32[16,8]{1,0}) all-gather-start(f32[2,8]{1,0} %y)
  %d = f32[16,8]{1,0} all-gather-done((f32[2,8], f32[16,8]) %s)
  %c = pred[64]{0} collective-permute(pred[64]{0} %z)
  %t = (f32[4]{0}, bf16[2,2]{1,0}) all-reduce(%x, %y), to_apply=%add
  %one = bf16[8,4]{1,0} all-gather(%p), frontend_attributes={chain_id="7"}
  %two = bf16[8,4]{1,0} all-gather(%q), frontend_attributes={chain_id="7"}
  %b = (u8[4], u8[4], u32[], u32[]) collective-permute-start(%w)
"""


def test_collectives_are_counted_with_the_bytes_of_their_results():
  assert aot.count_collectives(PROGRAM) == {
    "all-gather": (3, 2 * 8 * 4 * 2 + 16 * 8 * 4),
    "all-reduce": (2, 64 + 16 + 8),
    "collective-permute": (2, 64 + 4),
  }


def test_memory_analysis_counts_the_bytes_of_the_arrays():
  sharding = MeshShape(1, 8).build()
  split = jax.sharding.NamedSharding(sharding.mesh, P("fsdp"))
  state = jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=split)
  other = jax.ShapeDtypeStruct((32,), jnp.float32, sharding=sharding.replicated)
  found = aot.memory_analysis(
    lambda x, y: (x + y, (x * y).sum()),
    (state, other),
    donate_argnums=0,
    out_shardings=(split, sharding.replicated),
  )
  eighth = 64 * 32 * 4 // 8
  assert found.arguments == eighth + 32 * 4
  assert found.reused == eighth  # the donated state
  # And a number, and the addresses of both.
  assert eighth + 4 <= found.outputs <= eighth + 64
  assert found.collectives["all-reduce"][0] >= 1 and found.refusal is None


def planned(capsys, *flags):
  assert plan.main([*CLASSES, *SMALL, *flags]) == 0
  *table, line = capsys.readouterr().out.splitlines()
  return table, json.loads(line)


@pytest.mark.slow
def test_a_plan_for_the_present_devices(capsys):
  table, whole = planned(capsys, "--batch=8")
  assert whole["devices"] == 8 and whole["fits"] is True
  assert whole["mesh"]["data"] == 8 and whole["images_per_device"] == 1
  # A device holds the state, the frozen first stage and its images.
  assert whole["total"] >= whole["arguments"] > 3e6
  assert whole["collectives"]["all-reduce"][0] >= 1
  assert any(row.split() == ["fits", "yes"] for row in table)
  parts = whole["parts"]
  assert parts["params"] == parts["ema"] > 0 and parts["frozen"] > 0
  assert 2 * parts["params"] <= parts["opt"] < 2.01 * parts["params"]
  assert sum(parts.values()) == pytest.approx(whole["arguments"], rel=1e-3)
  assert whole["compiled_flops"] > 0
  # Sharded eightfold, each device holds an eighth of nearly all of it.
  _, sharded = planned(capsys, "--batch=8", "--config.mesh.fsdp=8")
  assert 1 / 8 < sharded["arguments"] / whole["arguments"] < 1 / 6
  assert sharded["collectives"]["all-gather"][0] > 10
  assert sharded["flops"] == whole["flops"]
  # Twice the images are twice the operations.
  _, twice = planned(capsys, "--batch=16")
  ratio = twice["flops"] / whole["flops"]
  np.testing.assert_allclose(ratio, 2, rtol=1e-3)


@pytest.mark.parametrize(
  "name, expected",
  [
    ("ldm/kl_f8", {"image": (256, 256, 3)}),
    ("sd/sd1", {"image": (512, 512, 3), "tokens": (77,)}),
    ("sd/sd1_inpainting", {"mask": (512, 512), "tokens": (77,)}),
    ("sd/sdxl_base", {"tokens": (77,), "sizes": (6,)}),
    ("ldm/imagenet256_f8", {"label": (), "image": (256, 256, 3)}),
    ("ldm/imagenet256_f8_classifier", {"label": ()}),
    ("ldm/super_resolution", {"low": (64, 64, 3)}),
    ("ldm/layout_open_images256", {"layout": (92,)}),
  ],
)
def test_shapes_follow_from_the_config(name, expected):
  experiment = config.load(str(CONFIGS / f"{name}.py"))
  if name == "ldm/super_resolution":
    stage = config.load(str(CONFIGS / "ldm/vq_f4.py")).task.autoencoder
    task = experiment.task.with_first_stage(stage)
    experiment = dataclasses.replace(experiment, task=task)
  found = batch_shapes.shapes_of(experiment, 4)
  for key, shape in expected.items():
    assert found[key].shape == (4, *shape), key


@pytest.mark.parametrize("prepared", ["latents", "texts"])
def test_a_step_on_prepared_latents_and_texts(prepared):
  """Its arrays are what `prepare` stores, and it is traced with them."""
  unet = Flux(3, 16, 1, 1, 2, (2, 2, 4), flow_steps=8)
  t5 = T5Embedder(T5Encoder(11, 12, 2, 2, 4, 12, is_scanned=True), 4)
  clip = ClipText(vocabulary=60, width=10, depth=1, heads=2)
  clip = ClipEmbedder((clip,), is_pooled=True, has_context=False)
  task = DenoiserTask(
    LatentDiffusion(
      Autoencoder(ConvStack(8, (1, 2), 1, groups=4), 3),
      unet,
      (clip, t5),
      Schedule("rectified_flow", steps=8),
      "flow",
    ),
    loss=DenoisingLoss("flow"),
  )
  array = jax.ShapeDtypeStruct
  batch = {
    "image": array((8, 16, 16, 3), "uint8"),
    "tokens": array((8, 77), "int32"),
    "t5_tokens": array((8, 4), "int32"),
  }
  sharding = MeshShape().build()
  state, frozen, found, _ = training_program(
    task, sharding, batch, prepared
  ).args
  moments = found.pop("moments")
  assert moments.shape == (8, 8, 8, 6) and moments.dtype == "float16"
  if prepared == "texts":
    kept = {name: each.shape for name, each in found.items()}
    assert kept == {"tokens_vector": (8, 10), "t5_tokens_context": (8, 4, 12)}
    assert frozen.conditioners["t5_tokens"]["null"]["context"].shape == (4, 12)
  else:
    assert found.keys() == {"tokens", "t5_tokens"}
    encoder = frozen.conditioners["t5_tokens"]["params"]["encoder"]
    assert "stacked_block_0_to_1" in encoder
  found["moments"] = moments
  after, _ = jax.eval_shape(task.step, state, frozen, found, jax.random.key(0))
  assert jax.tree.structure(after) == jax.tree.structure(state)


@pytest.mark.parametrize(
  "flags, message",
  [
    ([*CLASSES, "--prepared=texts"], "no frozen text encoder"),
    ([*CLASSES, "--prepared=latents", "--sample=2"], "a sampler reads no"),
    ([CLASSES[0]], "stage two needs first_stage"),
    ([*CLASSES, "--batch=7"], "does not divide"),
    ([*CLASSES, "--topology=v9:2x2"], "no topology 'v9:2x2'"),
    (
      [CLASSES[0], f"--first_stage={CONFIGS / 'sd' / 'sd1.py'}"],
      "not a config of stage one",
    ),
    (
      [f"--config={CONFIGS / 'glyphs_autoencoder.py'}"],
      "the size of its images is unknown",
    ),
  ],
)
def test_an_impossible_plan_is_one_line(flags, message):
  with pytest.raises(CommandError, match=message) as caught:
    plan.main(flags)
  assert caught.value.code == 2 and "\n" not in str(caught.value)


def test_the_largest_batch_is_on_a_line_through_two_that_fit():
  refused = aot.MemoryAnalysis(refusal="too much")
  compiled = []

  def need(batch):
    compiled.append(batch)
    if batch > 64:
      return refused
    return aot.MemoryAnalysis(temporaries=100 + 10 * batch)

  largest = lambda batch, limit: largest_batch(
    need, batch, 8, need(batch), limit and float(limit)
  )
  found = largest(32, 1200)
  assert found == LargestBatch(104, "a line through 32 and 64")
  assert compiled == [32, 64]
  assert largest(64, 500).images == 40  # though twice as many do not compile
  assert largest(128, 500).images == 40
  compiled.clear()
  assert largest(8, 500).basis == "a line through 8 and 16"
  assert largest(512, 500).basis == "no two batches compile"
  assert largest(8, None).basis == "unknown memory of the device"


@pytest.mark.slow
def test_a_plan_to_sample(capsys):
  table, few = planned(capsys, "--batch=8", "--sample=4")
  _, more = planned(capsys, "--batch=8", "--sample=9")
  assert "a sampler of 4 steps" in table[0] and few["total"] > few["arguments"]
  # Guided: two evaluations of the network a step, and the sampler's sums.
  experiment = override(
    config.load(CLASSES[0].partition("=")[2]),
    {
      flag.partition("=")[0].removeprefix("--config."): flag.partition("=")[2]
      for flag in SMALL
    },
  )
  unet = experiment.task.model.unet
  raw = (
    jnp.zeros((16, 8, 8, 4)),
    jnp.zeros(16),
    Condition(jnp.zeros((16, 1, 64))),
  )
  params = jax.eval_shape(unet.init, jax.random.key(0), *raw)
  evaluation = flops.count(unet.apply, params, *raw)
  assert (more["flops"] - few["flops"]) / 5 == pytest.approx(
    evaluation, rel=1e-3
  )
  with pytest.raises(CommandError, match="needs the config of a denoiser"):
    stage = f"--config={CONFIGS / 'ldm' / 'kl_f8.py'}"
    plan.main([stage, "--batch=8", "--sample=4"])
  with pytest.raises(CommandError, match="sampler_steps must be 1 or more"):
    planned(capsys, "--sample=0")


@pytest.mark.slow
def test_a_plan_for_an_absent_tpu(capsys):
  pytest.importorskip("libtpu")
  _, found = planned(capsys, "--batch=16", "--topology=v5e:2x2", "--largest")
  assert found["fits"] is True and found["devices"] == 4
  assert found["largest_batch"] > 16 and found["largest_batch"] % 4 == 0
