"""Regularizers of stage one: equivariance, alignment, and their weights."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from networks import random_like, random_state, random_variables

import ldm_jax
from ldm_jax.config import Data, Experiment, Reports
from ldm_jax.data.glyphs.source import Glyphs
from ldm_jax.errors import ConfigError
from ldm_jax.nn.autoencoder import Autoencoder, ConvStack, PixelSpace
from ldm_jax.nn.bottleneck import DeterministicPosterior
from ldm_jax.nn.encoders.dinov2 import DinoV2
from ldm_jax.nn.encoders.lpips import LPIPS
from ldm_jax.pixels import to_float
from ldm_jax.run import Run
from ldm_jax.runtime.checkpointing.policy import CheckpointPolicy
from ldm_jax.runtime.devices.sharding import MeshShape
from ldm_jax.runtime.optimizer import Optimizer
from ldm_jax.training.autoencoder import AutoencoderTask
from ldm_jax.training.first_stage.autoencoder_state import Frozen
from ldm_jax.training.first_stage.equivariance import (
  EquivarianceRegularizer,
  turn,
)
from ldm_jax.training.first_stage.feature_alignment import (
  FeatureAlignment,
  alignment_losses,
)
from ldm_jax.training.first_stage.regularizers import (
  Regularizer,
  RegularizerInputs,
  Scales,
  regularize,
)
from ldm_jax.weights.naming.convert import revert, shapes
from ldm_jax.weights.naming.parameter_names import name_table
from ldm_jax.weights.safetensors_files import write_safetensors

TRUNK = ConvStack(8, (1, 2), 1, has_mid_attention=False, groups=4)
MODULE = Autoencoder(TRUNK, 3)
ENCODER = DinoV2(8, 2, width=64, depth=1, heads=1, hidden=8)
EQUIVARIANCE = EquivarianceRegularizer(0.5, (0.5,))
ALIGNMENT = FeatureAlignment(path="random", encoder=ENCODER)
TASK = AutoencoderTask(
  MODULE,
  None,
  None,
  Optimizer(1e-3, (0.5, 0.9), weight_decay=0.0),
  regularizers=(EQUIVARIANCE, ALIGNMENT),
)


def ramp(images, slope):
  rows = np.arange(images.shape[1])
  return (1 + slope * rows[:, None, None]) * images


class Pooling(PixelSpace):
  """Means of 4 x 4 pixels, and nearest neighbours that grow row by row."""

  slope: float = 0.0
  stride = 4

  def latent_shape(self, height, width):
    return height // 4, width // 4, 3

  def encode(self, images):
    return DeterministicPosterior(nn.avg_pool(images, (4, 4), (4, 4)))

  def decode(self, latents):
    return ramp(jnp.repeat(jnp.repeat(latents, 4, 1), 4, 2), self.slope)


class One(nn.Module):
  """One convolution, as the last of a network."""

  features: int

  @nn.compact
  def __call__(self, x):
    return nn.Conv(self.features, (2, 2), name="conv_out")(x)


class Convolutions(Pooling):
  """An encoder and a decoder of one convolution each, around `Pooling`."""

  def setup(self):
    self.encoder, self.decoder = One(3), One(3)

  def encode(self, images):
    return super().encode(self.encoder(images))

  def decode(self, latents):
    return self.decoder(super().decode(latents))

  def __call__(self, images, noise):
    return self.decode(self.encode(images).mode()), jnp.zeros(())


def images_of(seed=0, side=16, width=None):
  rng = np.random.default_rng(seed)
  drawn = rng.uniform(-1, 1, (2, side, width or side, 3))
  return jnp.asarray(drawn, jnp.float32)


def error(images, recon):
  return jnp.abs(images - recon).mean()


def inputs_of(module, images, key=0, variables=None):
  key = jax.random.key(key)
  return RegularizerInputs(module, variables or {}, images, key, error)


# Equivariance.


@pytest.mark.parametrize("is_antialiased", [False, True])
@pytest.mark.parametrize("width", [16, 32])
def test_pixels_themselves_are_equivariant(is_antialiased, width):
  part = EquivarianceRegularizer(
    scales=(0.25, 0.5, 1.0), is_antialiased=is_antialiased
  )
  inputs = inputs_of(PixelSpace(), images_of(width=width))
  loss, metrics = part.loss(inputs, {}, {})
  assert loss == metrics["equivariance_loss"] == 0


def test_pooling_is_equivariant_where_images_are_of_one_colour_a_latent():
  blocks = jnp.repeat(jnp.repeat(images_of(side=2), 8, 1), 8, 2)
  inputs = inputs_of(Pooling(), blocks)
  part = EquivarianceRegularizer(scales=(0.5, 1.0))
  np.testing.assert_allclose(part.loss(inputs, {}, {})[0], 0, atol=1e-6)
  other = inputs_of(Pooling(), images_of())
  assert part.loss(other, {}, {})[0] > 0.1


@pytest.mark.parametrize("scale", [0.5, 1.0])
def test_equivariance_is_its_definition(scale):
  """At half the size bilinear interpolation is the mean of 2 x 2."""
  images = images_of(1)
  pixels = np.asarray(images, np.float64)

  def halved(x):
    if scale == 1.0:
      return x
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))

  latents = pixels.reshape(2, 4, 4, 4, 4, 3).mean((2, 4))
  candidates = []
  for quarters in (1, 2, 3):
    x, z = (np.rot90(a, quarters, (1, 2)) for a in (pixels, latents))
    recon = ramp(halved(z).repeat(4, 1).repeat(4, 2), 0.3)
    candidates.append(np.abs(halved(x) - recon).mean())
  found = [
    EquivarianceRegularizer(scales=(scale,)).loss(
      inputs_of(Pooling(slope=0.3), images, key), {}, {}
    )[0]
    for key in range(8)
  ]
  nearest = [np.abs(np.subtract(candidates, f)).argmin() for f in found]
  np.testing.assert_allclose(found, np.take(candidates, nearest), rtol=1e-5)
  assert set(nearest) == {0, 1, 2}


def test_turns_of_a_rectangle_are_by_180_degrees():
  x = images_of(side=4, width=8)
  for quarters in (1, 2, 3):
    np.testing.assert_array_equal(
      turn(x, jnp.int32(quarters)), x[:, ::-1, ::-1]
    )


# Alignment.


def plain_alignment(z, f, m1, m2):
  """Both terms position by position, in float64."""
  cosine = lambda a, b: a @ b / np.sqrt((a @ a) * (b @ b))
  first, second = [], []
  for zs, fs in zip(z.astype(float), f.astype(float), strict=True):
    zs, fs = (x.reshape(-1, x.shape[-1]) for x in (zs, fs))
    for i in range(len(zs)):
      first.append(max(0, 1 - m1 - cosine(zs[i], fs[i])))
      for j in range(len(zs)):
        gap = abs(cosine(zs[i], zs[j]) - cosine(fs[i], fs[j]))
        second.append(max(0, gap - m2))
  return np.mean(first), np.mean(second)


@pytest.mark.parametrize("margins", [(0.0, 0.0), (0.5, 0.25)])
def test_alignment_is_its_definition(margins):
  rng = np.random.default_rng(0)
  z, f = rng.normal(size=(2, 2, 3, 2, 5)).astype(np.float32)
  found = alignment_losses(jnp.asarray(z), jnp.asarray(f), *margins)
  needed = plain_alignment(z, f, *margins)
  np.testing.assert_allclose(found, needed, rtol=1e-5)
  assert min(needed) > 0


def test_features_are_aligned_with_themselves_at_any_length():
  f = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 2, 5)))
  same = alignment_losses(7 * f, f, 0.0, 0.0)
  np.testing.assert_allclose(same, 0, atol=1e-6)
  loss = lambda z: sum(alignment_losses(z, f, 0.0, 0.0))
  assert np.all(np.isfinite(jax.grad(loss)(jnp.zeros_like(f))))


# Gradients, and the weights of terms.


@functools.cache
def gradients():
  """Of both terms alone, with the parts that they have gradients of."""
  images = images_of()
  module, batch = Convolutions(), {"image": images}
  variables = random_variables(module, images, jnp.zeros((2, 4, 4, 3)))
  found = []
  for part in (EQUIVARIANCE, ALIGNMENT):
    task = dataclasses.replace(TASK, autoencoder=module)
    own = part.init(jax.random.key(1), task, batch)
    frozen = random_like(part.frozen_shapes(batch))

    def loss(variables, own, frozen, part=part):
      inputs = inputs_of(module, images, variables=variables)
      return part.loss(inputs, own, frozen)[0]

    found.append(jax.jit(jax.grad(loss, (0, 1, 2)))(variables, own, frozen))
  return found


def test_equivariance_trains_encoder_and_decoder():
  of_module, own, _ = gradients()[0]
  assert own == {}
  for side in ("encoder", "decoder"):
    assert optax.tree.norm(of_module["params"][side]) > 0


def test_alignment_trains_encoder_and_projection_only():
  of_module, own, of_features = gradients()[1]
  assert optax.tree.norm(of_module["params"]["encoder"]) > 0
  assert optax.tree.norm(own["projection"]["kernel"]) > 0
  for tree in (of_module["params"]["decoder"], of_features):
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(tree))


@dataclasses.dataclass(frozen=True)
class Sum(EquivarianceRegularizer):
  """The sum of all parameters, times a factor."""

  factor: float = 1.0
  is_adaptive: bool = False

  def loss(self, inputs, own, frozen):
    trees = inputs.variables, own
    leaves = jax.tree.leaves(trees)
    values = sum((leaf.sum() for leaf in leaves), jnp.zeros(()))
    return self.factor * values, {}


@pytest.mark.parametrize("is_adaptive", [False, True])
def test_gradients_are_weighted(is_adaptive):
  """Adaptive: by |nll's| / |its own| at the encoder's last kernel."""
  kernel = jnp.ones((2, 2))
  variables = {"params": {"encoder": {"conv_out": {"kernel": kernel}}}}
  nll = jax.tree.map(lambda x: 3 * x, variables)
  parts = (Sum(0.5, factor=2.0, is_adaptive=is_adaptive), Sum(0.0))
  total, metrics, after = regularize(
    parts,
    inputs_of(MODULE, images_of(), variables=variables),
    ([{"a": jnp.ones(3)}, {}], [{}, {}]),
    Scales(jnp.float32(0.1), 10, lambda: (nll,)),
    ({"autoencoder": nll, "logvar": 7.0}, ()),
  )
  # |nll's| is 6 and |the loss's| 4.
  weight = 0.1 * 0.5 * (6 / (4 + 1e-4) if is_adaptive else 10)
  np.testing.assert_allclose(total, weight * 2 * (4 + 3), rtol=1e-6)
  found = after["autoencoder"]["params"]["encoder"]["conv_out"]["kernel"]
  np.testing.assert_allclose(found, 3 + 2 * weight, rtol=1e-6)
  own = after["regularizers"][0]["a"]
  np.testing.assert_allclose(own, 2 * weight, rtol=1e-6)
  assert after["logvar"] == 7.0
  assert ("regularizer_ratio" in metrics) == is_adaptive


def frozen_of(task, batch):
  return random_like(task.frozen_shapes(batch))


@pytest.mark.slow
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_a_step_has_both_terms(reduction):
  """Its gradient equals that of the sum of losses, written out."""
  task = dataclasses.replace(TASK, reduction=reduction, perceptual=LPIPS(4))
  part = EquivarianceRegularizer(0.5, (1.0,))  # LPIPS needs 16 pixels
  module = Convolutions()
  task = dataclasses.replace(
    task, autoencoder=module, regularizers=(part, ALIGNMENT)
  )
  image = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
  batch, key = {"image": jnp.asarray(image)}, jax.random.key(3)
  images = to_float(batch["image"])
  frozen = frozen_of(task, batch)
  state = random_state(task, batch, frozen)
  state = state.replace(params=state.params | {"logvar": jnp.float32(0.3)})
  noise = jax.random.normal(jax.random.split(key)[0], (2, 4, 4, 3))
  of_image = 16 * 16 * 3 if reduction == "sum" else 1

  def mean(images, recon):
    lpips = task.perceptual.apply(frozen.perceptual, images, recon)
    return (jnp.abs(images - recon).mean() + lpips.mean()) / jnp.exp(0.3) + 0.3

  def base(variables):
    recon, bottleneck = module.apply(variables, images, noise)
    return of_image * mean(images, recon), bottleneck

  def of_part(index, variables, own):
    inner = jax.random.fold_in(key, 2 + index)
    inputs = RegularizerInputs(module, variables, images, inner, mean)
    return task.regularizers[index].loss(
      inputs, own, frozen.regularizers[index]
    )[0]

  slope = lambda f, *args: jax.jit(jax.grad(f, *args))
  params = state.params["autoencoder"], state.params["regularizers"]
  last = lambda tree: tree["params"]["encoder"]["conv_out"]["kernel"]
  alone = slope(lambda v: base(v)[0])(params[0])
  aligned = slope(lambda v: of_part(1, v, params[1][1]))(params[0])
  norms = [jnp.linalg.norm(last(tree)) for tree in (alone, aligned)]
  ratio = norms[0] / (norms[1] + 1e-4)

  def total(variables, own):
    nll, bottleneck = base(variables)
    nll += 1e-6 * bottleneck + 0.5 * of_image * of_part(0, variables, own[0])
    return nll + 0.1 * ratio * of_part(1, variables, own[1])

  needed = slope(total, (0, 1))(*params)
  after, metrics = jax.jit(task.step)(state, frozen, batch, key)
  moments = after.opt.inner[0].mu  # after one step half of the gradients
  found = moments["autoencoder"], moments["regularizers"]
  floor = 1e-6 * float(optax.tree.norm(needed))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(2 * a, b, rtol=2e-3, atol=floor),
    found,
    needed,
  )
  np.testing.assert_allclose(metrics["loss"], total(*params), rtol=1e-3)


# Runs.


def experiment(steps, task=TASK):
  return Experiment(
    task,
    Data(
      Glyphs(size=16),
      Glyphs(split="validation", size=8),
      batch=8,
      held_out=8,
    ),
    steps,
    checkpoints=CheckpointPolicy(every=2),
    reports=Reports(every=1, previews_every=0),
    trackers=(),
  )


def opened(folder):
  run, sharding = Run.open(str(folder)), MeshShape().build()
  read = run.trained(sharding), run.frozen(sharding)
  return jax.tree.map(np.asarray, read)


@pytest.mark.slow
def test_a_run_with_both_is_resumed_exactly(tmp_path):
  ldm_jax.train(experiment(3), str(tmp_path / "whole"))
  for steps in (2, 3):
    ldm_jax.train(experiment(steps), str(tmp_path / "parts"))
  whole, parts = opened(tmp_path / "whole"), opened(tmp_path / "parts")
  jax.tree.map(np.testing.assert_array_equal, whole, parts)
  frozen = whole[1].regularizers[1]
  jax.tree.map(np.testing.assert_array_equal, frozen, ALIGNMENT.load_frozen())


@pytest.mark.slow
def test_a_mesh_has_the_gradients_of_one_device():
  rng = np.random.default_rng(0)
  batch = {"image": rng.integers(0, 256, (8, 16, 16, 3), np.uint8)}
  frozen, found = frozen_of(TASK, batch), []
  for mesh in ((1, 1, 1, 1), (2, 2, 2, 1)):
    sharding = MeshShape(*mesh).build(jax.devices()[: int(np.prod(mesh))])
    sharding = dataclasses.replace(sharding, min_size=64)
    place = lambda tree, on=sharding: jax.device_put(
      tree, on.tree_shardings(tree)
    )
    state = place(random_state(TASK, batch, frozen))
    step = jax.jit(TASK.step)
    after, metrics = step(
      state, place(frozen), sharding.put_batch(batch), jax.random.key(0)
    )
    moments = jax.tree.map(np.asarray, after.opt.inner[0].mu)
    found.append((moments, {k: float(v) for k, v in metrics.items()}))
  (one, alone), (eight, together) = found
  floor = 1e-5 * float(optax.tree.norm(one))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=floor),
    eight,
    one,
  )
  for name, value in alone.items():
    np.testing.assert_allclose(together[name], value, rtol=1e-4)


# Refusals.


def test_both_are_regularizers():
  assert isinstance(EQUIVARIANCE, Regularizer)
  assert isinstance(ALIGNMENT, Regularizer)


@pytest.mark.parametrize("scales", [(), (0.0, 0.5), (1.5,)])
def test_scales_that_are_none(scales):
  with pytest.raises(ValueError, match="scales"):
    EquivarianceRegularizer(scales=scales)


def test_what_does_not_fit_is_one_line(tmp_path):
  batch = {"image": jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.uint8)}
  thirds = EquivarianceRegularizer(scales=(1 / 3,))
  with pytest.raises(ValueError, match=r"2\.66667 of 8 latents; take"):
    thirds.init(jax.random.key(0), TASK, batch)
  seeing = dataclasses.replace(TASK, perceptual=LPIPS(4))
  with pytest.raises(ValueError, match="of 8 pixels, and LPIPS needs 16; take"):
    EQUIVARIANCE.init(jax.random.key(0), seeing, batch)
  with pytest.raises(ValueError, match="leaves out encoder/conv_out"):
    dataclasses.replace(TASK, trains=("decoder",))
  with pytest.raises(ConfigError, match="path is empty"):
    FeatureAlignment().load_frozen()
  pixels = dataclasses.replace(TASK, autoencoder=PixelSpace())
  with pytest.raises(ValueError, match="set is_adaptive=False"):
    pixels.init(
      jax.random.key(0),
      {"image": jnp.zeros((1, 8, 8, 3), jnp.uint8)},
      Frozen(None),
    )
  task = dataclasses.replace(TASK, regularizers=(thirds,))
  with pytest.raises((ConfigError, ValueError), match=r"multiples of 0\.0625"):
    ldm_jax.train(experiment(1, task), str(tmp_path / "run"))


def test_the_encoder_of_a_file_has_to_be_the_configs(tmp_path):
  variables = random_variables(ENCODER, jnp.zeros((1, 8, 8, 3)))
  table = name_table("dinov2", "compvis", shapes(variables["params"]))
  path = str(tmp_path / "dinov2.safetensors")
  write_safetensors(path, revert(table, variables["params"]))
  wrong = dataclasses.replace(ALIGNMENT, path=path)
  with pytest.raises(ConfigError, match=r"position_offset: 0\.0 is not 0\.1"):
    wrong.load_frozen()
  encoder = ENCODER.clone(position_offset=0.1, dtype="bfloat16")
  part = dataclasses.replace(wrong, encoder=encoder)
  jax.tree.map(
    np.testing.assert_array_equal, part.load_frozen(), dict(variables)
  )


def test_frozen_parameters_have_the_shapes_that_are_said():
  batch = {"image": jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.uint8)}
  found = Frozen(None, [part.load_frozen() for part in TASK.regularizers])
  jax.tree.map(
    lambda a, b: np.testing.assert_equal(a.shape, b.shape),
    found,
    TASK.frozen_shapes(batch),
  )
