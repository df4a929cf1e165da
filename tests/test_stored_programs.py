"""A later process traces and compiles nothing, and computes the same."""

import dataclasses
import functools
import inspect
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import f32, random_like, random_variables

from ldm_jax.diffusion.guidance import ClassifierFreeGuidance
from ldm_jax.diffusion.samplers import SamplerConfig
from ldm_jax.latent_diffusion import LatentDiffusion, Parameters
from ldm_jax.nn.autoencoder import Autoencoder, ConvStack
from ldm_jax.nn.conditioners.embedders import ClassEmbedder
from ldm_jax.nn.encoders.clip_text import ClipText
from ldm_jax.nn.operators import choice
from ldm_jax.nn.unet import AttentionPlan, UNet
from ldm_jax.pretrained.single_network import initial_shapes
from ldm_jax.runtime import stored_programs
from ldm_jax.runtime.devices.sharding import MeshShape
from ldm_jax.runtime.program_cache import Structure
from ldm_jax.runtime.stored_programs import StoredProgram, stored_value
from ldm_jax.sampling import (
  Conditioning,
  GenerationInputs,
  SamplingConfig,
  SamplingEngine,
  engine,
  latent_codec,
  slots,
)
from ldm_jax.sampling.steps import denoising_steps
from ldm_jax.training import compiled_steps
from ldm_jax.training.autoencoder import AutoencoderTask
from ldm_jax.training.first_stage.autoencoder_state import Frozen

COMPILED = ("trace", "lower", "compil")  # in the names of jax's events


@pytest.fixture
def store(tmp_path, monkeypatch):
  """Programs of this process are stored in a folder."""
  monkeypatch.delenv(stored_programs.VARIABLE)
  monkeypatch.setattr(stored_programs._Store, "files", None)
  folder = tmp_path / "programs"
  assert stored_programs.store_programs(folder, 2**30)
  return folder


def double(x, key, *, power):
  """Something to compile, whose state is donated."""
  return {"x": x**power * 2}, jax.random.normal(key, x.shape)


@pytest.fixture
def traced(monkeypatch):
  """The calls of `double`, each of which is a trace."""
  calls = []

  def program(*parts, context=lambda: None):
    def run(x, key, *, power):
      calls.append(power)
      return double(x, key, power=power)

    jitted = jax.jit(run, static_argnames="power", donate_argnums=0)
    return StoredProgram(jitted, ("double", *parts), context)

  return program, calls


KEY = jax.random.key(3)


def test_a_stored_program_is_not_traced_and_gives_the_same(store, traced):
  program, calls = traced
  wanted, noise = double(jnp.arange(5.0), KEY, power=2)
  for _ in range(3):  # each is a new object, as in a new process
    x = jnp.arange(5.0)
    found, drawn = program()(x, KEY, power=2)
    np.testing.assert_array_equal(found["x"], wanted["x"])
    np.testing.assert_array_equal(drawn, noise)
    assert x.is_deleted()  # donated
  assert calls == [2]


def test_what_decides_the_program_is_in_the_key(store, traced):
  program, calls = traced
  program()(jnp.zeros(5), KEY, power=2)
  program("another")(jnp.zeros(5), KEY, power=2)
  program(context=lambda: "another")(jnp.zeros(5), KEY, power=2)
  program()(jnp.zeros(6), KEY, power=2)
  program()(jnp.zeros(5, jnp.int32), KEY, power=2)
  program()(jnp.zeros(5), KEY, power=3)
  x = jax.device_put(jnp.zeros(5), jax.devices()[1])
  program()(x, jax.device_put(KEY, jax.devices()[1]), power=2)
  with jax.default_matmul_precision("float32"):
    program()(jnp.zeros(5), KEY, power=2)
  assert len(calls) == 8


def test_changed_code_is_traced_but_not_compiled(store, traced, monkeypatch):
  program, calls = traced
  wanted = program()(jnp.arange(5.0), KEY, power=2)
  monkeypatch.setattr(stored_programs, "source_digest", lambda: "changed")
  monkeypatch.setattr(stored_programs, "_compile_and_store", None)
  found = program()(jnp.arange(5.0), KEY, power=2)
  jax.tree.map(np.testing.assert_array_equal, found, wanted)
  assert calls == [2, 2]
  program()(jnp.arange(5.0), KEY, power=2)
  assert calls == [2, 2]


@pytest.mark.parametrize("damage", ["flipped", "foreign", "unsafe"])
def test_damaged_files_are_replaced(store, traced, damage):
  program, calls = traced
  wanted = program()(jnp.arange(5.0), KEY, power=2)
  for path in store.iterdir():
    if damage == "flipped":
      content = bytearray(path.read_bytes())
      content[len(content) // 2] ^= 1
      path.write_bytes(content)
    elif damage == "foreign":
      files = stored_programs._Store.files
      files.write(path.name, pickle.dumps(("another", None, None)))
    else:
      path.chmod(0o666)
  for _ in range(2):
    found = program()(jnp.arange(5.0), KEY, power=2)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
  assert calls == [2, 2]


def test_what_cannot_be_described_is_only_jitted(store, traced):
  program, calls = traced
  for _ in range(2):
    program(lambda x: x)(jnp.arange(5.0), KEY, power=2)
  assert calls == [2, 2] and not list(store.iterdir())


def test_what_cannot_be_stored_is_compiled_by_jax(store, monkeypatch):
  def refuse(compiled):
    raise ValueError("Compilation does not support serialization")

  module = stored_programs.serialize_executable
  monkeypatch.setattr(module, "serialize", refuse)
  program = lambda: StoredProgram(jax.jit(lambda x: x + 1), ("one",))
  assert program()(1.0) == 2
  monkeypatch.setattr(stored_programs, "_compile_and_store", None)
  assert program()(1.0) == 2


def test_what_jax_has_compiled_is_not_stored(store, traced, monkeypatch):
  """An executable from jax's own cache may lack its code."""
  program, _ = traced
  one, files = program(), stored_programs._Store.files
  monkeypatch.setattr(stored_programs._Store, "files", None)
  one(jnp.arange(5.0), KEY, power=2)
  monkeypatch.setattr(stored_programs._Store, "files", files)
  one(jnp.arange(5.0), KEY, power=2)
  assert not list(store.iterdir())


def test_under_a_trace_the_function_is_traced(store):
  program = StoredProgram(jax.jit(lambda x: x**2), ("square",))
  assert jax.grad(program)(3.0) == 6
  np.testing.assert_array_equal(jax.vmap(program)(jnp.arange(3.0)), [0, 1, 4])
  assert not list(store.iterdir())


def test_programs_of_a_mesh_keep_its_devices(store):
  mesh = jax.make_mesh((4,), ("data",), devices=jax.devices()[4:])
  sharding = jax.NamedSharding(mesh, jax.P("data"))
  x = jax.device_put(jnp.arange(8.0), sharding)
  jitted = lambda: jax.jit(lambda x: x * 2, out_shardings=sharding)
  for _ in range(2):
    found = StoredProgram(jitted(), ("twice",))(x)
    np.testing.assert_array_equal(found, 2 * np.arange(8))
    assert found.sharding == sharding


def test_values_are_built_once(store):
  calls = []

  def build():
    calls.append(1)
    return {"a": jax.ShapeDtypeStruct((2, 3), jnp.float32)}

  for _ in range(2):
    assert stored_value(("shapes", 1), build) == build()
  assert len(calls) == 3
  stored_value(("shapes", 2), build)
  assert len(calls) == 4
  for path in store.iterdir():
    path.write_bytes(b"damaged")
  stored_value(("shapes", 1), build)
  assert len(calls) == 5


def test_nothing_is_stored_without_a_folder(tmp_path, monkeypatch):
  monkeypatch.setattr(stored_programs._Store, "files", None)
  monkeypatch.setenv(stored_programs.VARIABLE, "0")
  assert not stored_programs.store_programs(tmp_path / "a", 100)
  monkeypatch.delenv(stored_programs.VARIABLE)
  (tmp_path / "open").mkdir(mode=0o777)
  (tmp_path / "open").chmod(0o777)
  assert not stored_programs.store_programs(tmp_path / "open", 100)
  assert StoredProgram(jax.jit(lambda x: x + 1), ("one",))(1.0) == 2
  assert not (tmp_path / "a").exists()


@pytest.fixture
def events():
  """Names of what jax traces, lowers and compiles from here on."""
  found = []

  def append(name, *_, **__):
    if any(word in name for word in COMPILED):
      found.append(name)

  jax.monitoring.register_event_duration_secs_listener(append)
  yield found
  jax.monitoring.unregister_event_duration_listener(append)


def small_model():
  """A class-conditional model with parameters, on two devices."""
  attention = AttentionPlan((1,), heads=2)
  model = LatentDiffusion(
    Autoencoder(ConvStack(4, (1,), 1, has_mid_attention=False, groups=2), 3),
    UNet(3, 8, (1,), 1, attention=attention, groups=4),
    (ClassEmbedder(3, 8),),
  )
  key, latents = jax.random.key(0), (1, 8, 8, 3)
  first = random_variables(model.first_stage, f32(1, 8, 8, 3), f32(*latents))
  label = {"label": jax.ShapeDtypeStruct((1,), jnp.int32)}
  init = functools.partial(model.init, shape=latents)
  trained = random_like(jax.eval_shape(init, key, label))
  sharding = MeshShape().build(jax.devices()[:2])
  params = Parameters(
    first, jnp.float32(1), trained["conditioners"], trained["unet"]
  )
  return model, jax.device_put(params, sharding.replicated), sharding


def forget_shared(monkeypatch):
  """Jitted functions are made anew, which compiles them anew."""
  for module, name in (
    (denoising_steps, "programs"),
    (latent_codec, "_programs"),
    (compiled_steps, "_programs"),
  ):
    monkeypatch.setattr(module, name, inspect.unwrap(getattr(module, name)))
  monkeypatch.setattr(engine, "programs", denoising_steps.programs)


def images_of(sampler):
  raw = {"label": np.ones(8, np.int32)}
  no, yes = {"label": np.zeros(8, bool)}, {"label": np.ones(8, bool)}
  config = SamplingConfig(
    8, 8, SamplerConfig(3, eta=1.0), ClassifierFreeGuidance(2.0)
  )
  sides = Conditioning(raw, no), Conditioning(raw, yes)
  return np.concatenate(
    list(sampler.generate(config, *sides, GenerationInputs(8, 8)))
  )


def test_images_of_stored_programs_are_equal_bit_for_bit(
  store, events, monkeypatch
):
  model, params, sharding = small_model()
  sampler = SamplingEngine(model, params, sharding)
  written = images_of(sampler)
  programs = sampler._condition, sampler._chunk, sampler.codec._decode
  for program in programs:
    program._programs.clear()  # as in a new process
  events.clear()
  read = images_of(sampler)
  assert not events
  monkeypatch.setattr(stored_programs._Store, "files", None)
  forget_shared(monkeypatch)
  plain = images_of(SamplingEngine(model, params, sharding))
  assert events and plain.std() > 1
  np.testing.assert_array_equal(read, plain)
  np.testing.assert_array_equal(written, plain)


def test_programs_in_bfloat16_are_kept_by_its_gain():
  """Those of sampling, of decoding and of slots."""
  model, _, sharding = small_model()
  half = dataclasses.replace(model, unet=model.unet.clone(dtype="bfloat16"))
  found = {}
  try:
    for gain in (2.0, 0.5):
      choice.set_bfloat16_gain(lambda gain=gain: gain)
      for name, each in (("float32", model), ("bfloat16", half)):
        programs = (
          *denoising_steps.programs(each, None, sharding),
          *latent_codec._programs(each, sharding),
          slots._programs(each, sharding)[0],
        )
        contexts = [program._context() for program in programs]
        found.setdefault(name, []).append(contexts)
  finally:
    choice.set_bfloat16_gain(None)
  before, after = found["float32"]
  assert before == after
  for before, after in zip(*found["bfloat16"], strict=True):
    assert before != after


def test_shapes_of_equal_networks_are_traced_once(monkeypatch):
  calls = []
  build = lambda parts, trace: calls.append(parts) or trace()
  monkeypatch.setattr(initial_shapes, "stored_value", build)
  first = lambda width: ClipText(31, width, 1, 1, length=9, hidden=24)
  found = [initial_shapes.abstract(first(width), {}) for width in (24, 24, 32)]
  assert len(calls) == 2
  assert found[0] == found[1] != found[2]
  ids = jax.ShapeDtypeStruct((1, 1), jnp.int32)
  expected = jax.eval_shape(first(24).init, jax.random.key(0), ids)
  assert found[0] == expected


def test_a_stored_step_trains_the_same_state(store, events, monkeypatch):
  trunk = ConvStack(4, (1,), 1, has_mid_attention=False, groups=2)
  task = AutoencoderTask(
    Autoencoder(trunk, 3), perceptual=None, discriminator=None, disc_weight=0.0
  )
  sharding = MeshShape().build(jax.devices()[:2])
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (8, 8, 8, 3)).astype(np.uint8)
  batch = sharding.distribute({"image": pixels})
  frozen = Frozen(None)
  compiled = compiled_steps.CompiledTask(task, sharding, 0, frozen, batch)
  programs = compiled_steps._programs(
    task, sharding, Structure.of(frozen), Structure.of(batch)
  )

  def two_steps(compiled):
    state = compiled.init(batch)
    for _ in range(2):
      before = jax.tree.leaves(state)[0]
      state, metrics = compiled.step(state, batch)
      assert before.is_deleted()  # donated
    return state, metrics, compiled.measure(state, batch)

  written = two_steps(compiled)
  for program in (programs.init, programs.step, programs.measure):
    assert len(program._programs) == 1
    program._programs.clear()
  events.clear()
  read = two_steps(compiled)
  assert not events
  assert len(programs.step._programs) == 1  # also for what it has returned
  monkeypatch.setattr(stored_programs._Store, "files", None)
  forget_shared(monkeypatch)
  compiled = compiled_steps.CompiledTask(task, sharding, 0, frozen, batch)
  plain = two_steps(compiled)
  assert events
  jax.tree.map(np.testing.assert_array_equal, read, plain)
  jax.tree.map(np.testing.assert_array_equal, written, plain)
