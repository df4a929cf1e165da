"""Collectives are counted where a compiler cannot print its program."""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from test_plan import planned

from ldm_jax.runtime.devices import aot, partitioned
from ldm_jax.runtime.devices.partitioned import partitioned_program
from ldm_jax.runtime.devices.sharding import MeshShape


@flax.struct.dataclass
class Update:
  """A class of trees that cannot be serialised."""

  state: dict
  step: int


def test_a_program_is_partitioned_for_devices_of_another_process():
  """With the bytes of the compiled one: of gradients, and of kernels."""
  mesh = MeshShape(2, 4).build()
  home = lambda *axes: jax.sharding.NamedSharding(mesh.mesh, P(*axes))
  shape = lambda home, *size: jax.ShapeDtypeStruct(size, "f4", sharding=home)
  kernels = {"a": shape(home(None, "fsdp"), 32, 64)}
  kernels["b"] = shape(home("fsdp"), 64, 32)
  images = shape(home(("data", "fsdp")), 16, 32)

  def step(state, images, key):
    def loss(state):
      noise = jax.random.normal(key, images.shape)
      return ((jnp.sin(images @ state["a"]) @ state["b"] - noise) ** 2).mean()

    value, gradients = jax.value_and_grad(loss)(state)
    return Update(jax.tree.map(jnp.subtract, state, gradients), 1), value

  key = jax.ShapeDtypeStruct((), jax.random.key(0).dtype, sharding=home())
  shardings = (
    Update(jax.tree.map(lambda x: x.sharding, kernels), None),
    home(),
  )
  args = kernels, images, key
  with jax.sharding.set_mesh(mesh.mesh):
    expected = aot.memory_analysis(
      step, args, out_shardings=shardings
    ).collectives
  text = partitioned_program(step, args, shardings)
  found = aot.count_collectives(text)
  sizes = lambda counts: {kind: size for kind, (_, size) in counts.items()}
  assert sizes(found) == sizes(expected)  # the compiler joins some of them
  assert {"all-gather", "all-reduce"} <= set(expected)


def squares(kernel, images):
  """Its gradient gathers the kernel of fsdp, and sums over the devices."""
  return jnp.float32((images @ kernel.astype("bfloat16")) ** 2).sum()


def arguments(mesh):
  home = lambda *axes: jax.sharding.NamedSharding(mesh.mesh, P(*axes))
  shape = jax.ShapeDtypeStruct
  kernel = shape((256, 512), "float32", sharding=home("fsdp"))
  images = shape((16, 256), "bfloat16", sharding=home("fsdp"))
  return kernel, images


def test_bfloat16_is_sent_in_two_bytes():
  """A CPU, which sends float32 instead, is not asked."""
  kernel, images = arguments(MeshShape(1, 8).build())
  gradient = jax.grad(squares)
  args, sharding = (kernel, images), kernel.sharding
  text = partitioned_program(gradient, args, sharding)
  sent = {"all-gather": (1, 2 * 256 * 512), "all-reduce": (1, 2 * 256 * 512)}
  assert aot.count_collectives(text) == sent
  widened = aot.memory_analysis(gradient, args, out_shardings=sharding)
  assert widened.collectives["all-gather"] == (1, 4 * 256 * 512)


@pytest.mark.slow
def test_collectives_of_a_tpu_are_those_of_the_partitioner():
  pytest.importorskip("libtpu")
  mesh = MeshShape(1, 8).build(aot.topology_devices("v5e:2x4"))
  args, gradient = arguments(mesh), jax.grad(squares)
  text = partitioned_program(gradient, args, args[0].sharding)
  found = aot.memory_analysis(gradient, args, out_shardings=args[0].sharding)
  assert aot.count_collectives(text) == found.collectives


def test_a_process_that_fails_is_named(monkeypatch):
  monkeypatch.setattr(partitioned, "CHILD", "raise SystemExit('no memory')")
  args = arguments(MeshShape(1, 8).build())
  with pytest.raises(RuntimeError, match="ended with 1: no memory"):
    partitioned_program(squares, args, None)


@pytest.mark.slow
def test_collectives_are_counted_where_the_compiler_prints_no_program(
  capsys, monkeypatch
):
  """As libtpu for some programs; nearly those of the program it cannot show."""
  flags = ["--batch=8", "--config.mesh.fsdp=4", "--config.mesh.tensor=2"]
  flags += ["--prepared=latents", "--config.task.model.unet.multipliers=1,"]
  flags.append("--config.task.model.unet.attention.depths=1,")
  _, shown = planned(capsys, *flags)

  def refuse(self):
    raise jax.errors.JaxRuntimeError("UNIMPLEMENTED")

  monkeypatch.setattr(jax.stages.Compiled, "as_text", refuse)
  table, found = planned(capsys, *flags)
  sources = shown["collectives_of"], found["collectives_of"]
  assert sources == ("compiled", "partitioned")
  assert any("before the compiler's changes" in row for row in table)
  kinds = found["collectives"].keys()
  assert kinds == shown["collectives"].keys() and len(kinds) > 2
  for kind in kinds:
    (_, size), (_, expected) = (
      each["collectives"][kind] for each in (found, shown)
    )
    np.testing.assert_allclose(size, expected, rtol=0.02)
