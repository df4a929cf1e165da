"""The sampling engine: its images, its inputs, and what it compiles."""

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
from networks import initial_like, random_like, random_variables

from ldm_jax.diffusion.guidance import ClassifierFreeGuidance
from ldm_jax.diffusion.prediction import Estimate
from ldm_jax.diffusion.samplers import SAMPLERS, SamplerConfig
from ldm_jax.diffusion.schedule import Level
from ldm_jax.latent_diffusion import LatentDiffusion, Parameters
from ldm_jax.nn.autoencoder import Autoencoder, ConvStack
from ldm_jax.nn.conditioners.embedders import ClassEmbedder
from ldm_jax.nn.conditioners.spatial import (
  LowResolution,
  MaskedImage,
  subsample_mask,
)
from ldm_jax.nn.controlnet import ControlNet
from ldm_jax.nn.tiny_autoencoder import TinyAutoencoder
from ldm_jax.nn.unet import AttentionPlan, UNet
from ldm_jax.runtime.devices.sharding import MeshShape
from ldm_jax.sampling import (
  Conditioning,
  GenerationInputs,
  ImageInputs,
  Progress,
  SamplingConfig,
  SamplingEngine,
)
from ldm_jax.sampling.inpainting import latent_mask, slerp
from ldm_jax.sampling.inputs.resize import extend_canvas, fit_image, fit_mask
from ldm_jax.sampling.latent_codec import LatentCodec
from ldm_jax.sampling.sampling_config import ConditionGroup, PromptVariant
from ldm_jax.sampling.tiling import blend, starts, windowed

SIDE = 16
FIELDS = {
  "channels": 16,
  "multipliers": (1,),
  "blocks": 1,
  "attention": AttentionPlan((1,), heads=2),
  "groups": 8,
}
RNG = np.random.default_rng(0)
LEVEL = Level(jnp.float32(1), jnp.float32(1), jnp.float32(0.1))
CONFIG = SamplingConfig(
  SIDE, SIDE, SamplerConfig(6), ClassifierFreeGuidance(2.0)
)


def perturbed(tree, seed):
  """Random parameters: fresh networks are full of zeros."""
  leaves, form = jax.tree.flatten(tree)
  rng = np.random.default_rng(seed)
  return jax.tree.unflatten(
    form,
    [np.float32(x + 0.1 * rng.standard_normal(x.shape)) for x in leaves],
  )


def class_model(latents=3):
  """A class-conditional model with parameters."""
  model = LatentDiffusion(
    Autoencoder(ConvStack(8, (1, 1), 1, groups=4), latents),
    UNet(latents, **FIELDS),
    (ClassEmbedder(3, 8),),
  )
  key = jax.random.key(0)
  label = {"label": jnp.zeros((1,), jnp.int32)}
  first = random_variables(
    model.first_stage,
    jnp.zeros((1, SIDE, SIDE, 3)),
    jnp.zeros((1, 8, 8, latents)),
    seed=1,
  )
  trained = random_like(
    jax.eval_shape(lambda: model.init(key, label, (1, 8, 8, latents))), 2
  )
  params = Parameters(
    first, jnp.float32(0.8), trained["conditioners"], trained["unet"]
  )
  return model, params


@pytest.fixture(scope="module")
def model():
  return class_model()


@pytest.fixture(scope="module")
def engine(model):
  return SamplingEngine(*model, MeshShape().build(jax.devices()[:1]))


def sides(count, label=1):
  """A class for every image, and the unconditional side."""
  raw = {"label": np.full(count, label, np.int32)}
  no, yes = np.zeros(count, bool), np.ones(count, bool)
  return Conditioning(raw, {"label": no}), Conditioning(raw, {"label": yes})


def generated(engine, config, inputs, label=1):
  return np.concatenate(
    list(engine.generate(config, *sides(inputs.count, label), inputs))
  )


def random_images(count, height=SIDE, width=SIDE):
  rng = np.random.default_rng(count)
  return rng.integers(0, 256, (count, height, width, 3)).astype(np.uint8)


def apart(a, b):
  return np.abs(a.astype(int) - b.astype(int)).max()


def test_an_image_is_its_seed_and_index(engine):
  config = dataclasses.replace(CONFIG, sampler_config=SamplerConfig(6, eta=1.0))
  many = generated(engine, config, GenerationInputs(4, 4))
  alone = generated(engine, config, GenerationInputs(4, 1))
  assert many.shape == (4, SIDE, SIDE, 3) and many.std() > 5
  assert apart(many, alone) <= 1
  assert apart(many[0], many[1]) > 10
  other = generated(
    engine, dataclasses.replace(config, seed=1), GenerationInputs(4, 4)
  )
  assert apart(many, other) > 10


@pytest.fixture(scope="module")
def spread(model):
  """The engine on every device."""
  return SamplingEngine(*model, MeshShape().build())


@pytest.mark.parametrize("count", [1, 5, 8])
def test_results_do_not_depend_on_the_devices(engine, spread, count):
  inputs = GenerationInputs(count, 4)
  assert spread.batch_size(inputs) == 8  # every device gets one
  found = generated(spread, CONFIG, inputs)
  assert apart(found, generated(engine, CONFIG, inputs)) <= 1


def test_only_a_new_size_compiles_and_logs_it(engine, caplog):
  base = dataclasses.replace(CONFIG, guidance=ClassifierFreeGuidance(1.5))
  generated(engine, base, GenerationInputs(2, 2))
  compiled = engine._chunk._jitted._cache_size()
  caplog.set_level("INFO", logger="ldm_jax")
  caplog.clear()
  for config in (
    dataclasses.replace(base, seed=5),
    dataclasses.replace(
      base, guidance=ClassifierFreeGuidance(4.0, 0.5, 0.2, 0.8)
    ),
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
    generated(engine, config, GenerationInputs(2, 2))
  assert engine._chunk._jitted._cache_size() == compiled
  assert not caplog.messages
  generated(
    engine, dataclasses.replace(base, height=20), GenerationInputs(2, 2)
  )
  assert engine._chunk._jitted._cache_size() == compiled + 1
  line = "compiling the sampler for 20 x 16, 2 at a time ..."
  assert caplog.messages[0] == line
  assert re.fullmatch(r"compiled in [\d.]+ s", caplog.messages[1])


def test_network_calls_are_counted(engine):
  seen = []
  config = dataclasses.replace(CONFIG, sampler_config=SamplerConfig(12, "heun"))
  progress = Progress(lambda calls, x0: seen.append(calls))
  inputs = GenerationInputs(2, 2)
  list(engine.generate(config, *sides(2), inputs, progress))
  assert sum(seen) == engine.network_calls(config) == 23
  assert len(seen) == 3  # chunks of ten


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_generates(engine, name):
  found = generated(
    engine,
    dataclasses.replace(CONFIG, sampler_config=SamplerConfig(5, name)),
    GenerationInputs(2, 2),
  )
  assert np.isfinite(found).all() and found.std() > 5


def test_low_strength_changes_little(engine):
  """One step of a thousand, from time 0: the encoded latents within 0.03."""
  images = random_images(2)
  config = dataclasses.replace(
    CONFIG, sampler_config=SamplerConfig(1000), strength=0.001
  )
  inputs = GenerationInputs(
    2, 2, output="latents", image_inputs=ImageInputs(images)
  )
  found = generated(engine, config, inputs)
  kept = np.asarray(engine.codec.encode(images))
  sigma = engine.model.schedule.level_at(0).sigma
  assert 0 < np.abs(found - kept).mean() < 2 * sigma


def test_strength_one_still_starts_from_the_image(engine):
  config = dataclasses.replace(
    CONFIG, sampler_config=SamplerConfig(times=(400,))
  )
  one = generated(
    engine,
    config,
    GenerationInputs(2, 2, image_inputs=ImageInputs(random_images(2))),
  )
  other = generated(
    engine,
    config,
    GenerationInputs(2, 2, image_inputs=ImageInputs(255 - random_images(2))),
  )
  assert apart(one, other) > 5


def test_inpainting_changes_nothing_outside(engine):
  images, masks = random_images(2), np.zeros((2, SIDE, SIDE), bool)
  masks[:, 5:12, 3:9] = True
  for strength in (0.5, 1.0):
    config = dataclasses.replace(CONFIG, strength=strength)
    found = generated(
      engine,
      config,
      GenerationInputs(2, 2, image_inputs=ImageInputs(images, masks)),
    )
    np.testing.assert_array_equal(found[~masks], images[~masks])
    assert apart(found[masks], images[masks]) > 10


def test_the_kept_latents_are_those_of_the_image(engine):
  images, masks = random_images(2), np.zeros((2, SIDE, SIDE), bool)
  masks[:, 4:8, 4:8] = True
  inputs = GenerationInputs(
    2, 2, output="latents", image_inputs=ImageInputs(images, masks)
  )
  found = generated(engine, CONFIG, inputs)
  kept = np.asarray(engine.codec.encode(images))
  cells = latent_mask(masks, 2)[..., 0]
  np.testing.assert_allclose(found[~cells], kept[~cells], atol=1e-5)
  assert np.abs(found[cells] - kept[cells]).max() > 0.1


def test_a_cell_is_generated_if_any_of_its_pixels_is():
  masks = np.zeros((1, 8, 8), bool)
  masks[0, 3, 5] = True
  assert latent_mask(masks, 4)[0, :, :, 0].tolist() == [
    [False, True],
    [False, False],
  ]
  assert not subsample_mask(masks, 4).any()
  masks[0, 4, 4] = True
  assert subsample_mask(masks, 4)[0, 1, 1, 0]


def test_variations_lie_between_one_noise_and_another(engine):
  own = generated(engine, CONFIG, GenerationInputs(4, 4, output="latents"))
  none, whole = (
    generated(
      engine,
      CONFIG,
      GenerationInputs(4, 4, output="latents", variation=fraction),
    )
    for fraction in (0.0, 1.0)
  )
  np.testing.assert_allclose(none, own[[0, 0, 0, 0]], atol=1e-4)
  np.testing.assert_allclose(whole, own, atol=1e-4)


def test_interpolation_between_noises_and_between_conditions(engine):
  own = generated(engine, CONFIG, GenerationInputs(2, 2, output="latents"))
  fractions = np.linspace(0, 1, 4)
  path = generated(
    engine,
    CONFIG,
    GenerationInputs(4, 4, output="latents", fractions=fractions),
  )
  np.testing.assert_allclose(path[[0, 3]], own, atol=1e-4)
  noise = RNG.standard_normal((2, 8, 8, 3))
  path = generated(
    engine,
    CONFIG,
    GenerationInputs(4, 4, noise, "latents", fractions=fractions),
  )
  ends = generated(engine, CONFIG, GenerationInputs(2, 2, noise, "latents"))
  np.testing.assert_allclose(path[[0, 3]], ends, atol=1e-4)
  inputs = GenerationInputs(
    4, 4, output="latents", fractions=fractions, end=sides(4, 2)[0]
  )
  path = generated(engine, CONFIG, inputs)
  ends = [
    generated(engine, CONFIG, GenerationInputs(1, 1, output="latents"), label)[
      0
    ]
    for label in (1, 2)
  ]
  np.testing.assert_allclose(path[[0, 3]], ends, atol=1e-4)
  assert np.abs(path[1] - path[0]).max() > 1e-3


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


def test_prompt_weights_scale_the_context(engine):
  """Weight 1 changes nothing; 0 is the null."""
  positive, negative = sides(2)
  encode = engine._condition
  plain, null = (
    encode(engine._params, side).context for side in (positive, negative)
  )
  for weight in (1.0, 0.0, 1.5):
    weighted = dataclasses.replace(
      positive,
      weights={"label": np.full((2, 1), weight, np.float32)},
      empty={"label": np.full(2, 3, np.int32)},  # the null class
    )
    found = encode(engine._params, weighted).context
    np.testing.assert_allclose(found, null + weight * (plain - null), atol=1e-5)


def test_a_window_as_large_as_the_image_changes_nothing(engine):
  config = dataclasses.replace(CONFIG, height=24)
  whole = generated(engine, config, GenerationInputs(2, 2, output="latents"))
  found = generated(
    engine,
    dataclasses.replace(config, window=24),
    GenerationInputs(2, 2, output="latents"),
  )
  np.testing.assert_allclose(found, whole, atol=1e-4)
  found = generated(
    engine,
    dataclasses.replace(config, window=16),
    GenerationInputs(2, 2, output="latents"),
  )
  assert np.abs(found - whole).max() > 1e-3


def test_windows_change_nothing_for_a_pixelwise_denoiser():
  """Blending weights sum to one, with a concatenated condition too."""
  xt = jnp.asarray(RNG.standard_normal((2, 13, 9, 3)), jnp.float32)
  concat = jnp.asarray(RNG.standard_normal((2, 26, 18, 1)), jnp.float32)

  def make(crop):
    more = crop(concat)[:, ::2, ::2]
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


def test_the_disagreement_of_windows_is_measured():
  """Zero for a pixelwise function; the distance where windows differ."""
  x = jnp.asarray(RNG.standard_normal((1, 4, 7, 1)), jnp.float32)
  _, seam = blend(lambda crop: jnp.tanh(crop(x)), (4, 7), 4)
  assert float(seam) < 1e-3
  columns = jnp.broadcast_to(jnp.arange(7.0)[:, None], (1, 4, 7, 1))
  first = lambda crop: jnp.broadcast_to(crop(columns)[:, :, :1], (1, 4, 4, 1))
  whole, seam = blend(first, (4, 7), 4)
  # Windows at 0 and 3 overlap in column 3 with values 0 and 3, equal weights.
  np.testing.assert_allclose(whole[0, 0, :, 0], [0, 0, 0, 1.5, 3, 3, 3])
  np.testing.assert_allclose(seam, 1.5, rtol=1e-5)


def test_one_tile_is_the_whole_image(engine, caplog):
  images = random_images(2, 24, 16)
  whole = engine.codec.encode(images)
  np.testing.assert_allclose(
    engine.codec.encode(images, tile=24), whole, atol=1e-5
  )
  pixels = engine.codec.decode(whole)
  assert apart(engine.codec.decode(whole, tile=8), pixels) <= 1
  assert not caplog.messages


def test_tiles_of_other_first_stages_are_blended(caplog):
  stage = TinyAutoencoder(4, 8, (1, 1), (1, 1))
  model, images = LatentDiffusion(stage), random_images(1, 24, 16)
  first = random_variables(
    stage, jnp.zeros((1, 24, 16, 3)), jnp.zeros((1, 12, 8, 4)), seed=3
  )
  params = Parameters(first, jnp.float32(0.5), {}, None)
  codec = LatentCodec(model, params, MeshShape().build(jax.devices()[:1]))
  latents = codec.encode(images)
  whole, tiled = codec.decode(latents), codec.decode(latents, tile=12)
  assert tiled.shape == whole.shape
  assert re.search(r"tiles decoded differ by [\d.]+ of 255", caplog.messages[0])
  assert 0 < np.abs(tiled.astype(int) - whole).mean() < 40


def test_a_fresh_controlnet_changes_nothing_and_a_perturbed_one_does(model):
  plain, params = model
  control = ControlNet(3, **FIELDS, hint_channels=(4, 8))
  variables = initial_like(
    control.init,
    jnp.zeros((1, 8, 8, 3)),
    jnp.zeros((1,)),
    dataclasses.replace(condition_of(model), hint=None),
    jnp.zeros((1, SIDE, SIDE, 3)),
  )
  controlled = dataclasses.replace(plain, control=control)
  one = MeshShape().build(jax.devices()[:1])
  hints = ImageInputs(hints=random_images(2))
  inputs = GenerationInputs(2, 2, output="latents")
  expected = generated(SamplingEngine(plain, params, one), CONFIG, inputs)
  controlled_order = dataclasses.replace(inputs, image_inputs=hints)
  fresh = SamplingEngine(controlled, params.replace(control=variables), one)
  np.testing.assert_allclose(
    generated(fresh, CONFIG, controlled_order), expected, atol=1e-5
  )
  trained = params.replace(control=perturbed(variables, 4))
  trained = SamplingEngine(controlled, trained, one)
  assert (
    np.abs(generated(trained, CONFIG, controlled_order) - expected).max() > 1e-2
  )
  for control in ((0.0, 0.0, 1.0), (1.0, 0.0, 0.0)):
    disabled = dataclasses.replace(CONFIG, control=control)
    np.testing.assert_allclose(
      generated(trained, disabled, controlled_order), expected, atol=1e-5
    )
  with pytest.raises(ValueError, match="go together"):
    generated(trained, CONFIG, inputs)


def condition_of(model):
  """A condition of one image."""
  plain, params = model
  no = {"label": jnp.zeros((1,), bool)}
  return plain.condition(params, {"label": jnp.ones((1,), jnp.int32)}, no)


@pytest.mark.parametrize(
  "config, inputs, message",
  [
    ({"height": 17}, GenerationInputs(1, 1), "try 16"),
    (
      {},
      GenerationInputs(1, 1, image_inputs=ImageInputs(random_images(1, 8))),
      "expected",
    ),
    (
      {},
      GenerationInputs(1, 1, image_inputs=ImageInputs(hints=random_images(1))),
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
      GenerationInputs(3, 3, np.zeros((3, 8, 8, 3)), fractions=np.zeros(3)),
      "the ends of an interpolation",
    ),
  ],
)
def test_impossible_inputs_are_refused(engine, config, inputs, message):
  with pytest.raises(ValueError, match=message):
    engine.check(dataclasses.replace(CONFIG, **config), inputs)


@pytest.mark.parametrize("strength", [0.0, -1.0, 1.1, float("nan")])
def test_impossible_strengths_are_refused(strength):
  with pytest.raises(ValueError, match="strength"):
    dataclasses.replace(CONFIG, strength=strength)


@pytest.mark.parametrize("part", [MaskedImage(), LowResolution()])
def test_an_error_names_the_image_that_a_model_needs(model, part):
  one = MeshShape().build(jax.devices()[:1])
  network, params = model
  parts = (*network.conditioners, part)
  inpainting = SamplingEngine(
    dataclasses.replace(network, conditioners=parts), params, one
  )
  with pytest.raises(ValueError, match="give it an image"):
    inpainting.check(CONFIG, GenerationInputs(1, 1))


@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_the_negative_side_drops_what_training_dropped(model, rate):
  """A masked image is on both sides, unless training dropped it at times."""
  one = MeshShape().build(jax.devices()[:1])
  network, params = model
  part = MaskedImage(drop_rate=rate)
  network = dataclasses.replace(
    network, conditioners=(*network.conditioners, part)
  )
  params = params.replace(conditioners=params.conditioners | {"mask": {}})
  inpainting = SamplingEngine(network, params, one)
  masks = np.zeros((2, SIDE, SIDE), bool)
  masks[:, 4:8] = True
  inputs = GenerationInputs(
    2, 2, image_inputs=ImageInputs(random_images(2), masks)
  )
  rows = np.arange(2)
  positive, negative = sides(2)
  group = ConditionGroup(rows, (PromptVariant((positive,), negative),))
  begun = inpainting.begin(CONFIG, group, inputs, rows, params)
  ((_, step),) = begun.schedule
  assert np.abs(step.positive.concat).max() > 0
  is_kept = rate == 0
  assert np.array_equal(step.positive.concat, step.negative.concat) == is_kept
  assert is_kept or not np.any(step.negative.concat)


def test_images_from_a_later_index_are_the_same(engine):
  many = generated(engine, CONFIG, GenerationInputs(4, 4))
  later = generated(engine, CONFIG, GenerationInputs(2, 2, first=2))
  assert apart(many[2:], later) <= 1 and apart(many[:2], later) > 10


def test_inversion_finds_the_noise(engine):
  """Inverted and sampled again; the error vanishes with more steps."""
  latents = engine.codec.encode(random_images(2))
  errors = []
  for steps in (100, 400):
    sampler_config = SamplerConfig(steps, timestep_spacing="exponential")
    config = dataclasses.replace(
      CONFIG, sampler_config=sampler_config, guidance=ClassifierFreeGuidance()
    )
    noise = np.asarray(engine.invert(config, latents, sides(2)[0]))
    inputs = GenerationInputs(2, 2, noise, output="latents")
    found = generated(engine, config, inputs)
    errors.append(np.abs(found - np.asarray(latents)).mean())
  assert errors[1] < 0.7 * errors[0]


def test_images_are_resized_and_extended():
  image = random_images(1, 10, 14)[0]
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
engine = t.SamplingEngine(*t.class_model(), t.MeshShape().build())
inputs = t.GenerationInputs(5, 2)
np.save(sys.argv[3], t.generated(engine, t.CONFIG, inputs))
"""


@pytest.mark.slow
def test_two_processes_generate_what_one_does(engine, tmp_path):
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
    _, log = process.communicate(timeout=300)
    assert process.returncode == 0, log[-2000:]
  expected = generated(engine, CONFIG, GenerationInputs(5, 5))
  for i in range(2):
    assert apart(np.load(tmp_path / f"{i}.npy"), expected) <= 1
