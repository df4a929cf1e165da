"""Every conditioner: its output, its unconditional one, and its gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import initial_like, random_state, random_variables

from ldm_jax.concat_conditioning import (
  NoiseAugmentation,
  low_resolution_input,
  prepare_inputs,
)
from ldm_jax.diffusion.schedule import Schedule, q_sample
from ldm_jax.latent_diffusion import LatentDiffusion, Parameters
from ldm_jax.nn.autoencoder import Autoencoder, ConvStack
from ldm_jax.nn.conditioners.embedders import (
  ClassEmbedder,
  LayoutEmbedder,
  SizeEmbedder,
  TextEmbedder,
)
from ldm_jax.nn.conditioners.source_image import SourceImage
from ldm_jax.nn.conditioners.spatial import (
  LowResolution,
  MaskedImage,
  MaskedLatents,
  NeighbourEmbeddings,
  NoisyLowResolution,
  SegmentationEmbedder,
)
from ldm_jax.nn.encoders.text_encoder import TextEncoder
from ldm_jax.nn.unet import AttentionPlan, UNet
from ldm_jax.pixels import to_float
from ldm_jax.training.denoiser import DenoiserTask, Frozen

RNG = np.random.default_rng(11)
KEEP, DROP = jnp.array([False, False]), jnp.array([False, True])


def embed(part, raw, drop=KEEP):
  variables = initial_like(part.init, raw, drop)
  return jax.jit(part.apply)(variables, raw, drop), variables


def segmaps():
  return jnp.asarray(RNG.integers(0, 5, (2, 16, 8)), jnp.uint8)


def test_a_map_is_halved_as_torch_halves_it():
  """Bilinear by 0.5 without antialiasing is the mean of 2 x 2 pixels."""
  raw = segmaps()
  condition, variables = embed(SegmentationEmbedder(5, 3), raw)
  one_hot = np.eye(5)[np.asarray(raw)]
  for _ in range(2):
    b, h, w, c = one_hot.shape
    one_hot = one_hot.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))
  kernel = np.asarray(variables["params"]["rescale"]["kernel"])
  np.testing.assert_allclose(condition.concat, one_hot @ kernel, atol=1e-6)
  assert condition.concat.shape == (2, 4, 2, 3) and kernel.shape == (5, 3)


def test_a_map_as_tokens_has_a_token_for_every_cell():
  part = SegmentationEmbedder(5, 6, joins="context", positions=8)
  condition, variables = embed(part, segmaps(), DROP)
  assert condition.context.shape == (2, 8, 6) and condition.concat is None
  places = variables["params"]["positions"]
  np.testing.assert_allclose(condition.context[1], places, atol=1e-6)
  assert np.abs(condition.context[0] - places).max() > 0.01
  with pytest.raises(ValueError, match="8 cells of a map"):
    embed(part.clone(positions=9), segmaps())


def test_a_map_that_cannot_be_halved_is_refused():
  with pytest.raises(ValueError, match="cannot be halved"):
    embed(SegmentationEmbedder(5), segmaps()[:, :, :6])


def test_both_conventions_of_inpainting():
  """Order and values of the channels are those of LDM and SD."""
  latents = jnp.asarray(RNG.standard_normal((2, 4, 4, 3)), jnp.float32)
  mask = jnp.asarray(RNG.random((2, 4, 4, 1)) < 0.5)
  seen = MaskedLatents(latents, mask)
  sd, _ = embed(MaskedImage("sd"), seen)
  np.testing.assert_array_equal(sd.concat[..., :1], mask)
  np.testing.assert_array_equal(sd.concat[..., 1:], latents)
  ldm, _ = embed(MaskedImage("ldm"), seen)
  np.testing.assert_array_equal(ldm.concat[..., :3], latents)
  np.testing.assert_array_equal(ldm.concat[..., 3:], np.where(mask, 1, -1))
  assert (
    MaskedImage("sd").masked_value == 0
    and MaskedImage("ldm").masked_value == -1
  )


def test_fill_has_the_mask_of_every_pixel_after_the_latents():
  """FLUX.1-Fill: a channel for each place in a cell, row by row."""
  part = MaskedImage("flux")
  masks = np.random.default_rng(0).random((2, 4, 6)) < 0.5
  cells = part.cells(masks, 2)
  assert cells.shape == (2, 2, 3, 4)
  np.testing.assert_array_equal(cells[1, 1, 2], masks[1, 2:4, 4:6].ravel())
  latents = np.ones((2, 2, 3, 5), np.float32)
  masked = MaskedLatents(jnp.asarray(latents), jnp.asarray(cells))
  found = part(masked, jnp.array([False, False])).concat
  np.testing.assert_array_equal(found[..., :5], latents)
  np.testing.assert_array_equal(found[..., 5:], cells.astype(np.float32))
  assert part.masked_value == 0


def test_low_resolution_images_come_with_their_noise_level():
  image = jnp.asarray(RNG.standard_normal((2, 4, 4, 3)), jnp.float32)
  seen = NoisyLowResolution(image, jnp.array([0.0, 7.0]))
  bare, _ = embed(LowResolution(), seen)
  assert bare.vector is None
  np.testing.assert_array_equal(bare.concat, image)
  noised, _ = embed(LowResolution(10, 8), seen, DROP)
  np.testing.assert_array_equal(noised.vector, np.eye(10)[[0, 7]])
  assert not noised.concat[1].any() and noised.concat[0].any()
  with pytest.raises(ValueError, match="max_train_level=350"):
    LowResolution(10)


def test_embeddings_are_tokens_and_zeros_without_a_condition():
  rows = jnp.asarray(RNG.standard_normal((2, 3, 8)), jnp.float32)
  condition, _ = embed(NeighbourEmbeddings(8), rows, DROP)
  np.testing.assert_array_equal(condition.context[0], rows[0])
  assert not condition.context[1].any()
  with pytest.raises(ValueError, match="width 8"):
    embed(NeighbourEmbeddings(9), rows)


@pytest.mark.parametrize("joins", ["context", "vector", "both"])
def test_a_class_may_join_the_time(joins):
  labels = jnp.array([1, 2])
  condition, variables = embed(ClassEmbedder(4, 6, joins), labels, DROP)
  table = variables["params"]["table"]["embedding"]
  expected = table[jnp.array([1, 4])]
  assert (condition.context is None) == (joins == "vector")
  assert (condition.vector is None) == (joins == "context")
  for array in jax.tree.leaves(condition):
    np.testing.assert_array_equal(array.reshape(2, 6), expected)


def test_the_unconditional_layout_has_no_object():
  encoder = TextEncoder(50, 8, 1, 2, 4, 5)
  part = LayoutEmbedder(encoder)
  ids = jnp.asarray(RNG.integers(0, 49, (2, 5)), jnp.int32)
  a, variables = embed(part, ids, DROP)
  b = jax.jit(part.apply)(variables, jnp.full((2, 5), 49), KEEP)
  a, b = np.asarray(a.context), np.asarray(b.context)
  np.testing.assert_allclose(a[1], b[1], atol=1e-6)
  assert np.abs(a[0] - b[0]).max() > 0.01


def test_images_are_kept_unless_training_dropped_them():
  assert (
    not MaskedImage().has_unconditional
    and not LowResolution().has_unconditional
  )
  assert not SegmentationEmbedder().has_unconditional
  assert SegmentationEmbedder(drop_rate=0.1).has_unconditional
  assert (
    NeighbourEmbeddings().has_unconditional
    and ClassEmbedder(3, 4).has_unconditional
  )
  assert not SizeEmbedder().has_unconditional


# Together: one model with every conditioner.

STAGE = Autoencoder(ConvStack(8, (1, 2, 2), 1, groups=4), latent_channels=4)
TEXT = TextEmbedder(TextEncoder(30, 16, 1, 2, 8, 6), drop_rate=0.5)
PARTS = {
  "text": TEXT,
  "class": ClassEmbedder(4, 16, "both", drop_rate=0.5),
  "map": SegmentationEmbedder(5, 3, drop_rate=0.5),
  "map tokens": SegmentationEmbedder(5, 16, joins="context", positions=16),
  "layout": LayoutEmbedder(TextEncoder(50, 16, 1, 2, 8, 5), drop_rate=0.5),
  "masked": MaskedImage("sd"),
  "masked ldm": MaskedImage("ldm", drop_rate=0.5),
  "low": LowResolution(),
  "noisy low": LowResolution(10, 8),
  "neighbours": NeighbourEmbeddings(16, drop_rate=0.5),
  "source": SourceImage(drop_rate=0.5),
}
SETS = [(name,) for name in PARTS] + [
  ("text", "masked"),
  ("text", "class", "map", "masked", "noisy low", "neighbours", "layout"),
  (),
]


def batch(count=4):
  rng = np.random.default_rng(5)
  return {
    "image": rng.integers(0, 256, (count, 16, 16, 3)).astype(np.uint8),
    "tokens": rng.integers(4, 30, (count, 6)).astype(np.int32),
    "label": rng.integers(0, 4, count).astype(np.int32),
    "segmap": rng.integers(0, 5, (count, 16, 16)).astype(np.uint8),
    "layout": rng.integers(0, 49, (count, 5)).astype(np.int32),
    "mask": rng.random((count, 16, 16)) < 0.4,
    "low": rng.integers(0, 256, (count, 4, 4, 3)).astype(np.uint8),
    "source": rng.integers(0, 256, (count, 16, 16, 3)).astype(np.uint8),
    "neighbours": rng.standard_normal((count, 2, 16)).astype(np.float32),
  }


def conditioned_model(names):
  parts = tuple(PARTS[name] for name in names)
  vectors = {"class", "noisy low"} & set(names)
  planes = {"map", "masked", "masked ldm", "low", "noisy low", "source"}
  tokens = set(names) - planes
  plan = AttentionPlan((1,), heads=2, kind="transformer" if tokens else "plain")
  unet = UNet(4, 16, (1,), 1, plan, groups=4, vector="mlp" if vectors else None)
  is_noisy = "noisy low" in names
  return LatentDiffusion(
    STAGE,
    unet,
    parts,
    noise_augmentation_schedule=Schedule("linear", 1e-4, 0.02, 10)
    if is_noisy
    else None,
  )


@pytest.fixture(scope="module")
def first_stage():
  images, noise = jnp.zeros((1, 16, 16, 3)), jnp.zeros((1, 4, 4, 4))
  return random_variables(STAGE, images, noise)


@pytest.mark.parametrize(
  "names",
  [
    # The last two hold every condition but the source image.
    pytest.param(
      names,
      id="+".join(names),
      marks=() if names in SETS[-2:] else pytest.mark.slow,
    )
    for names in SETS
  ],
)
def test_every_condition_is_embed(first_stage, names):
  """The loss depends on every array that is read, and on nothing else."""
  task = DenoiserTask(conditioned_model(names), latent_scale=1.0)
  frozen, arrays = Frozen(first_stage, jnp.float32(1.0)), batch()
  key = jax.random.key(1)
  state, measure = random_state(task, arrays, frozen), jax.jit(task.measure)
  loss = lambda arrays: measure(state, frozen, arrays, key)["loss"]
  base = loss(arrays)
  input_key = {PARTS[name].input_key for name in names} | {"image"}
  for name, rows in arrays.items():
    changed = arrays | {name: np.roll(rows, 1, axis=0)}
    assert (abs(loss(changed) - base) > 1e-6) == (name in input_key), name


# The whole set holds every kind of parameter but those of tokens of a map.
@pytest.mark.parametrize(
  "names",
  [
    pytest.param(("map tokens",), id="map tokens", marks=pytest.mark.slow),
    pytest.param(SETS[-2], id="+".join(SETS[-2])),
  ],
)
def test_every_condition_trains(first_stage, names):
  """A step updates every parameter except those without a gradient yet."""
  task = DenoiserTask(conditioned_model(names), latent_scale=1.0)
  frozen, arrays = Frozen(first_stage, jnp.float32(1.0)), batch()
  state = initial_like(task.init, arrays, frozen)
  step = jax.jit(task.step)
  after = state
  for i in range(6):  # zeros at the ends hold gradients back for a step each
    after, metrics = step(after, frozen, arrays, jax.random.key(i))
  assert np.isfinite(metrics["loss"])
  moved = jax.tree.map(
    lambda a, b: bool((a != b).any()),
    state.params["conditioners"],
    after.params["conditioners"],
  )
  assert all(jax.tree.leaves(moved))


def test_masked_pixels_are_hidden_before_the_first_stage(first_stage):
  """No masked pixel changes what is concatenated with x_t."""
  model = conditioned_model(("masked",))
  params = Parameters(first_stage, jnp.float32(0.5), {}, {})
  arrays = batch()
  arrays = jax.device_put(arrays)
  seen_of = jax.jit(
    lambda arrays: prepare_inputs(model, params, arrays, None)["mask"]
  )
  seen = seen_of(arrays)
  other = jnp.where(
    arrays["mask"][..., None], 255 - arrays["image"], arrays["image"]
  )
  again = seen_of(arrays | {"image": other})
  np.testing.assert_array_equal(seen.latents, again.latents)
  np.testing.assert_array_equal(seen.mask[..., 0], arrays["mask"][:, ::4, ::4])
  hidden = jnp.where(arrays["mask"][..., None], 0.0, to_float(arrays["image"]))
  whole = 0.5 * jax.jit(lambda x: model.encode(params, x).mode())(hidden)
  np.testing.assert_allclose(seen.latents, whole, atol=1e-5)


def test_low_resolution_images_get_the_noise_of_their_level():
  model = conditioned_model(("noisy low",))
  images = jnp.asarray(RNG.uniform(-1, 1, (2, 4, 4, 3)), jnp.float32)
  noise = jnp.asarray(RNG.standard_normal(images.shape), jnp.float32)
  levels = jnp.array([0.0, 7.0])
  seen = low_resolution_input(model, images, NoiseAugmentation(levels, noise))
  expected = q_sample(model.noise_augmentation_schedule, images, levels, noise)
  np.testing.assert_allclose(seen.image, expected)
  plain = low_resolution_input(conditioned_model(("low",)), images, None)
  np.testing.assert_array_equal(plain.image, images)


def test_training_noise_levels_stay_below_the_largest():
  task = DenoiserTask(conditioned_model(("noisy low",)), latent_scale=1.0)
  draws = jax.jit(task.draw)(jax.random.key(0), batch(64))
  assert (
    draws.noise_augmentation.level.max() == 7
    and draws.noise_augmentation.level.min() == 0
  )


def test_offset_noise_moves_the_means():
  """Var of a channel's mean: 1/n of eps itself, plus the offset's square."""
  task = DenoiserTask(conditioned_model(()), latent_scale=1.0)
  offset = dataclasses.replace(task, offset_noise=0.5)
  key, arrays = jax.random.key(0), batch(512)
  draw = lambda task: jax.jit(lambda *of: task.draw(*of).noise)(key, arrays)
  means = [np.asarray(draw(t)).mean((1, 2)) for t in (task, offset)]
  np.testing.assert_allclose(means[0].var(), 1 / 16, rtol=0.1)
  np.testing.assert_allclose(means[1].var(), 1 / 16 + 0.25, rtol=0.1)
