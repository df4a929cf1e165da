"""A studio: what it draws, from what, and what it compiles for that."""

import dataclasses
import os
import re
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.diffusion.guidance import Guidance
from ldm_jax.diffusion.prediction import Estimate
from ldm_jax.diffusion.samplers import SAMPLERS, SamplerConfig
from ldm_jax.diffusion.schedule import Level
from ldm_jax.latent_diffusion import LatentDiffusion, Parameters
from ldm_jax.nn.autoencoder import Autoencoder, ConvStack
from ldm_jax.nn.conditioners.embedders import ClassEmbedder
from ldm_jax.nn.conditioners.spatial import (
  LowResolution,
  MaskedImage,
  first_of_cells,
)
from ldm_jax.nn.controlnet import ControlNet
from ldm_jax.nn.unet import AttentionPlan, UNet
from ldm_jax.runtime.devices.sharding import MeshShape
from ldm_jax.sampling import (
  Conditioning,
  GenerationInputs,
  ImageInputs,
  SamplingConfig,
  SamplingEngine,
)
from ldm_jax.sampling.inpainting import latent_mask, slerp
from ldm_jax.sampling.resize import extend_canvas, fit_image, fit_mask
from ldm_jax.sampling.tiling import blend, starts, windowed

SIDE = 16
FIELDS = {
  "channels": 16,
  "multipliers": (1, 2),
  "blocks": 1,
  "attention": AttentionPlan((0, 1), heads=2),
  "groups": 8,
}
RNG = np.random.default_rng(0)
LEVEL = Level(jnp.float32(1), jnp.float32(1), jnp.float32(0.1))
SETTINGS = SamplingConfig(SIDE, SIDE, SamplerConfig(6), Guidance(2.0))


def stirred(tree, seed):
  """Every number drawn: fresh networks are full of zeros."""
  leaves, form = jax.tree.flatten(tree)
  rng = np.random.default_rng(seed)
  return jax.tree.unflatten(
    form,
    [x + jnp.float32(0.1 * rng.standard_normal(x.shape)) for x in leaves],
  )


def made(latents=3, **changes):
  """A model of classes with parameters; changes are of the U-Net's input."""
  model = LatentDiffusion(
    Autoencoder(ConvStack(8, (1, 1), 1, groups=4), latents),
    UNet(latents, **FIELDS),
    (ClassEmbedder(3, 8),),
  )
  key = jax.random.key(0)
  label = {"label": jnp.zeros((1,), jnp.int32)}
  first = jax.jit(model.first_stage.init)(
    key, jnp.zeros((1, SIDE, SIDE, 3)), jnp.zeros((1, 8, 8, latents))
  )
  trained = jax.jit(lambda: model.init(key, label, (1, 8, 8, latents)))()
  params = Parameters(
    stirred(first, 1),
    jnp.float32(0.8),
    stirred(trained["conditioners"], 2),
    stirred(trained["unet"], 3),
  )
  return model, params


@pytest.fixture(scope="module")
def model():
  return made()


@pytest.fixture(scope="module")
def studio(model):
  lines = []
  one = MeshShape().build(jax.devices()[:1])
  made = SamplingEngine(*model, one, say=lines.append)
  made.lines = lines
  return made


def sides(count, label=1):
  """A class for every image, and nothing."""
  raw = {"label": np.full(count, label, np.int32)}
  no, yes = np.zeros(count, bool), np.ones(count, bool)
  return Conditioning(raw, {"label": no}), Conditioning(raw, {"label": yes})


def drawn(studio, settings, order, label=1):
  return np.concatenate(
    list(studio.draw(settings, *sides(order.count, label), order))
  )


def pictures(count, height=SIDE, width=SIDE):
  rng = np.random.default_rng(count)
  return rng.integers(0, 256, (count, height, width, 3)).astype(np.uint8)


def apart(a, b):
  return np.abs(a.astype(int) - b.astype(int)).max()


def test_an_image_is_its_seed_and_index(studio):
  settings = dataclasses.replace(
    SETTINGS, sampler_config=SamplerConfig(6, eta=1.0)
  )
  many = drawn(studio, settings, GenerationInputs(16, 16))
  alone = drawn(studio, settings, GenerationInputs(16, 1))
  assert many.shape == (16, SIDE, SIDE, 3) and many.std() > 5
  assert apart(many, alone) <= 1
  assert apart(many[0], many[1]) > 10
  other = drawn(
    studio, dataclasses.replace(settings, seed=1), GenerationInputs(16, 16)
  )
  assert apart(many, other) > 10


@pytest.mark.parametrize("count", [1, 5, 8])
def test_devices_change_nothing(studio, model, count):
  spread = SamplingEngine(*model, MeshShape().build())
  assert spread.batch(GenerationInputs(count, 3)) == 8  # every device gets one
  found = drawn(spread, SETTINGS, GenerationInputs(count, 3))
  assert apart(found, drawn(studio, SETTINGS, GenerationInputs(count, 3))) <= 1


def test_only_a_new_size_compiles_and_says_so(studio):
  base = dataclasses.replace(SETTINGS, guidance=Guidance(1.5))
  drawn(studio, base, GenerationInputs(2, 2))
  compiled = studio._chunk._cache_size()
  studio.lines.clear()
  for settings in (
    dataclasses.replace(base, seed=5),
    dataclasses.replace(base, guidance=Guidance(4.0, 0.5, 0.2, 0.8)),
    *(
      dataclasses.replace(base, sampler_config=SamplerConfig(4, name))
      for name in SAMPLERS
    ),
    dataclasses.replace(
      base,
      sampler_config=SamplerConfig(23, timestep_spacing="quadratic", eta=0.5),
    ),
    dataclasses.replace(base, sampler_config=SamplerConfig(times=(900, 3.5))),
  ):
    drawn(studio, settings, GenerationInputs(2, 2))
  assert studio._chunk._cache_size() == compiled and not studio.lines
  drawn(studio, dataclasses.replace(base, height=20), GenerationInputs(2, 2))
  assert studio._chunk._cache_size() == compiled + 1
  said = "compiling the sampler for 20 x 16, 2 at a time ..."
  assert studio.lines[0] == said
  assert re.fullmatch(r"compiled in [\d.]+ s", studio.lines[1])


def test_questions_are_counted(studio):
  seen = []
  settings = dataclasses.replace(
    SETTINGS, sampler_config=SamplerConfig(12, "heun")
  )
  list(studio.draw(settings, *sides(2), GenerationInputs(2, 2), seen.append))
  assert sum(seen) == studio.questions(settings) == 23
  assert len(seen) == 3  # chunks of ten


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_draws(studio, name):
  found = drawn(
    studio,
    dataclasses.replace(SETTINGS, sampler_config=SamplerConfig(5, name)),
    GenerationInputs(2, 2),
  )
  assert np.isfinite(found).all() and found.std() > 5


def test_hardly_any_strength_is_hardly_any_change(studio):
  """One step of a thousand, from time 0: what was encoded, but for 0.03."""
  images = pictures(2)
  settings = dataclasses.replace(
    SETTINGS, sampler_config=SamplerConfig(1000), strength=0.001
  )
  order = GenerationInputs(2, 2, output="latents", given=ImageInputs(images))
  found = drawn(studio, settings, order)
  kept = np.asarray(studio.codec.encode(images))
  sigma = studio._model.schedule.level_at(0).sigma
  assert 0 < np.abs(found - kept).mean() < 2 * sigma


def test_a_strength_of_one_still_begins_with_the_image(studio):
  settings = dataclasses.replace(
    SETTINGS, sampler_config=SamplerConfig(times=(400,))
  )
  one = drawn(
    studio, settings, GenerationInputs(2, 2, given=ImageInputs(pictures(2)))
  )
  other = drawn(
    studio,
    settings,
    GenerationInputs(2, 2, given=ImageInputs(255 - pictures(2))),
  )
  assert apart(one, other) > 5


def test_inpainting_changes_nothing_outside(studio):
  images, masks = pictures(2), np.zeros((2, SIDE, SIDE), bool)
  masks[:, 5:12, 3:9] = True
  for strength in (0.5, 1.0):
    settings = dataclasses.replace(SETTINGS, strength=strength)
    found = drawn(
      studio, settings, GenerationInputs(2, 2, given=ImageInputs(images, masks))
    )
    np.testing.assert_array_equal(found[~masks], images[~masks])
    assert apart(found[masks], images[masks]) > 10


def test_what_is_kept_of_the_latents_is_the_image(studio):
  images, masks = pictures(2), np.zeros((2, SIDE, SIDE), bool)
  masks[:, 4:8, 4:8] = True
  order = GenerationInputs(
    2, 2, output="latents", given=ImageInputs(images, masks)
  )
  found = drawn(studio, SETTINGS, order)
  kept = np.asarray(studio.codec.encode(images))
  cells = latent_mask(masks, 2)[..., 0]
  np.testing.assert_allclose(found[~cells], kept[~cells], atol=1e-5)
  assert np.abs(found[cells] - kept[cells]).max() > 0.1


def test_a_cell_is_redrawn_if_any_of_its_pixels_is():
  masks = np.zeros((1, 8, 8), bool)
  masks[0, 3, 5] = True
  assert latent_mask(masks, 4)[0, :, :, 0].tolist() == [
    [False, True],
    [False, False],
  ]
  assert not first_of_cells(masks, 4).any()
  masks[0, 4, 4] = True
  assert first_of_cells(masks, 4)[0, 1, 1, 0]


def test_variations_lie_between_one_noise_and_another(studio):
  own = drawn(studio, SETTINGS, GenerationInputs(3, 3, output="latents"))
  none, whole = (
    drawn(
      studio,
      SETTINGS,
      GenerationInputs(3, 3, output="latents", variation=share),
    )
    for share in (0.0, 1.0)
  )
  np.testing.assert_allclose(none, own[[0, 0, 0]], atol=1e-4)
  np.testing.assert_allclose(whole, own, atol=1e-4)


def test_a_way_between_two_noises_and_two_sayings(studio):
  own = drawn(studio, SETTINGS, GenerationInputs(2, 2, output="latents"))
  shares = np.linspace(0, 1, 4)
  way = drawn(
    studio, SETTINGS, GenerationInputs(4, 4, output="latents", shares=shares)
  )
  np.testing.assert_allclose(way[[0, 3]], own, atol=1e-4)
  noise = RNG.standard_normal((2, 8, 8, 3))
  way = drawn(
    studio, SETTINGS, GenerationInputs(4, 4, noise, "latents", shares=shares)
  )
  ends = drawn(studio, SETTINGS, GenerationInputs(2, 2, noise, "latents"))
  np.testing.assert_allclose(way[[0, 3]], ends, atol=1e-4)
  order = GenerationInputs(
    4, 4, output="latents", shares=shares, toward=sides(4, 2)[0]
  )
  way = drawn(studio, SETTINGS, order)
  ends = [
    drawn(studio, SETTINGS, GenerationInputs(1, 1, output="latents"), label)[0]
    for label in (1, 2)
  ]
  np.testing.assert_allclose(way[[0, 3]], ends, atol=1e-4)
  assert np.abs(way[1] - way[0]).max() > 1e-3


def test_slerp_keeps_the_length():
  a, b = jnp.asarray(RNG.standard_normal((2, 3, 8, 8, 4)), jnp.float32)
  length = lambda x: np.sqrt(np.sum(np.square(x), (1, 2, 3)))
  a, b = (x / length(x)[:, None, None, None] for x in (a, b))
  middle = slerp(a, b, jnp.array([0.0, 0.5, 1.0]))
  np.testing.assert_allclose(length(middle), 1, atol=1e-5)
  np.testing.assert_allclose(middle[0], a[0], atol=1e-6)
  np.testing.assert_allclose(middle[2], b[2], atol=1e-6)
  same = slerp(a, a, jnp.array([0.3, 0.5, 0.7]))
  np.testing.assert_allclose(same, a, atol=1e-6)


def test_weights_of_words_stretch_the_context(studio):
  """Weight 1 changes nothing; 0 is the null."""
  positive, negative = sides(2)
  hear = jax.jit(studio._heard)
  plain, null = (
    hear(studio._params, side).context for side in (positive, negative)
  )
  for weight in (1.0, 0.0, 1.5):
    told = dataclasses.replace(
      positive,
      weights=np.full((2, 1), weight, np.float32),
      empty={"label": np.full(2, 3, np.int32)},  # the null class
    )
    found = hear(studio._params, told).context
    np.testing.assert_allclose(found, null + weight * (plain - null), atol=1e-5)


def test_a_window_as_large_as_the_image_is_no_window(studio):
  settings = dataclasses.replace(SETTINGS, height=24)
  whole = drawn(studio, settings, GenerationInputs(2, 2, output="latents"))
  found = drawn(
    studio,
    dataclasses.replace(settings, window=24),
    GenerationInputs(2, 2, output="latents"),
  )
  np.testing.assert_allclose(found, whole, atol=1e-4)
  found = drawn(
    studio,
    dataclasses.replace(settings, window=16),
    GenerationInputs(2, 2, output="latents"),
  )
  assert np.abs(found - whole).max() > 1e-3


def test_windows_blend_to_what_every_pixel_says():
  """A denoiser of single pixels needs no window, so windows change nothing."""
  xt = jnp.asarray(RNG.standard_normal((2, 13, 9, 3)), jnp.float32)
  beside = jnp.asarray(RNG.standard_normal((2, 26, 18, 1)), jnp.float32)

  def make(crop):
    more = crop(beside)[:, ::2, ::2]
    return lambda x, level: Estimate(jnp.tanh(x) + more, x * more)

  found = jax.jit(windowed(make, (13, 9), 4))(xt, LEVEL)
  expected = make(lambda x: x)(xt, LEVEL)
  np.testing.assert_allclose(found.x0, expected.x0, atol=1e-5)
  np.testing.assert_allclose(found.eps, expected.eps, atol=1e-5)


def test_windows_cover_everything_and_overlap():
  for length in range(1, 70):
    for side in (1, 2, 5, 16, 64):
      begins = starts(length, side)
      covered = np.zeros(length, int)
      for begin in begins:
        assert begin >= 0 and (begin + side <= length or length <= side)
        covered[begin : begin + side] += 1
      assert covered.min() >= 1


def test_how_much_windows_disagree_is_told():
  """Nothing where pixels speak alone; the distance where windows count."""
  x = jnp.asarray(RNG.standard_normal((1, 4, 7, 1)), jnp.float32)
  _, seam = blend(lambda crop: jnp.tanh(crop(x)), (4, 7), 4)
  assert float(seam) < 1e-3
  columns = jnp.broadcast_to(jnp.arange(7.0)[:, None], (1, 4, 7, 1))
  first = lambda crop: jnp.broadcast_to(crop(columns)[:, :, :1], (1, 4, 4, 1))
  whole, seam = blend(first, (4, 7), 4)
  # Windows at 0 and 3 share column 3 and say 0 and 3, with equal weight.
  np.testing.assert_allclose(whole[0, 0, :, 0], [0, 0, 0, 1.5, 3, 3, 3])
  np.testing.assert_allclose(seam, 1.5, rtol=1e-5)


def test_tiles_are_the_whole_where_there_is_one(studio):
  images = pictures(2, 24, 16)
  whole = studio.codec.encode(images)
  np.testing.assert_allclose(
    studio.codec.encode(images, tile=24), whole, atol=1e-5
  )
  pixels = studio.codec.decode(whole)
  assert apart(studio.codec.decode(whole, tile=24), pixels) <= 1
  studio.lines.clear()
  tiled = studio.codec.decode(whole, tile=12)
  assert tiled.shape == pixels.shape
  assert re.search(r"tiles decoded differ by [\d.]+ of 255", studio.lines[0])
  # Norms see a tile only, so tiles are an approximation.
  assert 0 < np.abs(tiled.astype(int) - pixels).mean() < 40


def test_a_fresh_controlnet_says_nothing_and_a_stirred_one_does(model):
  plain, params = model
  control = ControlNet(3, **FIELDS, hint_channels=(4, 8))
  variables = jax.jit(control.init)(
    jax.random.key(1),
    jnp.zeros((1, 8, 8, 3)),
    jnp.zeros((1,)),
    dataclasses.replace(said(model), hint=None),
    jnp.zeros((1, SIDE, SIDE, 3)),
  )
  controlled = dataclasses.replace(plain, control=control)
  one = MeshShape().build(jax.devices()[:1])
  hints = ImageInputs(hints=pictures(2))
  order = GenerationInputs(2, 2, output="latents")
  expected = drawn(SamplingEngine(plain, params, one), SETTINGS, order)
  told = dataclasses.replace(order, given=hints)
  fresh = SamplingEngine(controlled, params.replace(control=variables), one)
  np.testing.assert_allclose(drawn(fresh, SETTINGS, told), expected, atol=1e-5)
  loud = params.replace(control=stirred(variables, 4))
  loud = SamplingEngine(controlled, loud, one)
  assert np.abs(drawn(loud, SETTINGS, told) - expected).max() > 1e-2
  for control in ((0.0, 0.0, 1.0), (1.0, 0.0, 0.0)):
    quiet = dataclasses.replace(SETTINGS, control=control)
    np.testing.assert_allclose(drawn(loud, quiet, told), expected, atol=1e-5)
  with pytest.raises(ValueError, match="go together"):
    drawn(loud, SETTINGS, order)


def said(model):
  """A condition of one image."""
  plain, params = model
  no = {"label": jnp.zeros((1,), bool)}
  return plain.condition(params, {"label": jnp.ones((1,), jnp.int32)}, no)


@pytest.mark.parametrize(
  "settings, order, message",
  [
    ({"height": 18}, GenerationInputs(1, 1), "try 16 in place of 18"),
    (
      {},
      GenerationInputs(1, 1, given=ImageInputs(pictures(1, 8))),
      "the order is of",
    ),
    (
      {},
      GenerationInputs(1, 1, given=ImageInputs(hints=pictures(1))),
      "go together",
    ),
    (
      {"sampler_config": SamplerConfig(2000)},
      GenerationInputs(1, 1),
      "between 1 and 1000",
    ),
    ({"strength": 0.1}, GenerationInputs(1, 1), "leaves none"),
    (
      {},
      GenerationInputs(1, 1, np.zeros((1, 4, 4, 3))),
      "initial latents of shape",
    ),
    (
      {},
      GenerationInputs(3, 3, np.zeros((3, 8, 8, 3)), shares=np.zeros(3)),
      "the ends of a way",
    ),
  ],
)
def test_impossible_orders_are_refused(studio, settings, order, message):
  with pytest.raises(ValueError, match=message):
    studio.check(dataclasses.replace(SETTINGS, **settings), order)


@pytest.mark.parametrize("strength", [0.0, -1.0, 1.1, float("nan")])
def test_impossible_strengths_are_refused(strength):
  with pytest.raises(ValueError, match="strength"):
    dataclasses.replace(SETTINGS, strength=strength)


@pytest.mark.parametrize("part", [MaskedImage(), LowResolution()])
def test_models_that_need_a_picture_say_so(model, part):
  one = MeshShape().build(jax.devices()[:1])
  network, params = model
  parts = (*network.conditioners, part)
  made = SamplingEngine(
    dataclasses.replace(network, conditioners=parts), params, one
  )
  with pytest.raises(ValueError, match="give it an image"):
    made.check(SETTINGS, GenerationInputs(1, 1))


@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_guidance_leads_away_from_what_training_left_out(model, rate):
  """A hole stays on both sides, unless training sometimes hid it."""
  one = MeshShape().build(jax.devices()[:1])
  network, params = model
  part = MaskedImage(drop_rate=rate)
  network = dataclasses.replace(
    network, conditioners=(*network.conditioners, part)
  )
  params = params.replace(conditioners=params.conditioners | {"mask": {}})
  made = SamplingEngine(network, params, one)
  masks = np.zeros((2, SIDE, SIDE), bool)
  masks[:, 4:8] = True
  order = GenerationInputs(2, 2, given=ImageInputs(pictures(2), masks))
  start = made._starter.start(
    SETTINGS, order, order.given, made._plan(SETTINGS), np.arange(2)
  )
  wish = made._wish(SETTINGS, (*sides(2), None), start)
  assert np.abs(wish.positive.concat).max() > 0
  stays = rate == 0
  assert np.array_equal(wish.positive.concat, wish.negative.concat) == stays
  assert stays or not np.any(wish.negative.concat)


def test_images_of_a_later_order_are_the_same_ones(studio):
  many = drawn(studio, SETTINGS, GenerationInputs(5, 5))
  later = drawn(studio, SETTINGS, GenerationInputs(2, 2, first=3))
  assert apart(many[3:], later) <= 1 and apart(many[:2], later) > 10


def test_inversion_leads_back_to_the_noise(studio):
  """Through a network, up and down again: exact as the steps grow many."""
  latents = studio.codec.encode(pictures(2))
  errors = []
  for steps in (100, 400):
    sampler_config = SamplerConfig(steps, timestep_spacing="exponential")
    settings = dataclasses.replace(
      SETTINGS, sampler_config=sampler_config, guidance=Guidance()
    )
    noise = np.asarray(studio.invert(settings, latents, sides(2)[0]))
    order = GenerationInputs(2, 2, noise, output="latents")
    found = drawn(studio, settings, order)
    errors.append(np.abs(found - np.asarray(latents)).mean())
  assert errors[1] < 0.7 * errors[0]


def test_pictures_are_fitted_and_extended():
  image = pictures(1, 10, 14)[0]
  assert fit_image(image, 10, 14) is image
  assert fit_image(image, 8, 16).shape == (8, 16, 3)
  larger, mask = extend_canvas(image, 2, 0, 3, 4)
  assert larger.shape == (14, 19, 3) and mask.shape == (14, 19)
  np.testing.assert_array_equal(larger[:10, 2:16], image)
  assert not mask[:10, 2:16].any() and mask.sum() == 14 * 19 - 140
  np.testing.assert_array_equal(larger[:, 0][:10], image[:, 0])
  grey = np.repeat(np.array([[[0], [127]], [[128], [255]]]), 3, 2)
  shown = fit_mask(grey.astype(np.uint8), 2, 2)
  assert shown.tolist() == [[False, False], [True, True]]


PROCESS = """
import sys
import jax
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
import numpy as np
import test_sampling as t
assert jax.device_count() == 2 and jax.local_device_count() == 1
studio = t.Studio(*t.made(), t.MeshShape().build())
np.save(sys.argv[3], t.drawn(studio, t.SETTINGS, t.Order(5, 2)))
"""


@pytest.mark.slow
def test_two_processes_draw_what_one_does_in_order(studio, tmp_path):
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    address = f"localhost:{probe.getsockname()[1]}"
  env = {**os.environ, "JAX_NUM_CPU_DEVICES": "1", "XLA_FLAGS": ""}
  env["PYTHONPATH"] = os.path.dirname(__file__)
  running = [
    subprocess.Popen(
      [sys.executable, "-c", PROCESS, address, str(i), tmp_path / f"{i}.npy"],
      env=env,
      stderr=subprocess.PIPE,
      text=True,
    )
    for i in range(2)
  ]
  for process in running:
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said[-2000:]
  expected = drawn(studio, SETTINGS, GenerationInputs(5, 5))
  for i in range(2):
    assert apart(np.load(tmp_path / f"{i}.npy"), expected) <= 1
