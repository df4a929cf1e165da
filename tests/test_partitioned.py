"""Collectives are counted where a compiler cannot print its program."""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from test_plan import planned

from ldm_jax.runtime.devices import aot
from ldm_jax.runtime.devices.partitioned import partitioned_program
from ldm_jax.runtime.devices.sharding import MeshShape


@flax.struct.dataclass
class Update:
  """A class of trees that cannot be serialised."""

  state: dict
  step: int


def test_a_program_is_partitioned_for_devices_of_another_process():
  """With the collectives of the compiled one: of gradients, and of kernels."""
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
  homes = (Update(jax.tree.map(lambda x: x.sharding, kernels), None), home())
  args = kernels, images, key
  with jax.sharding.set_mesh(mesh.mesh):
    expected = aot.memory_analysis(step, args, out_shardings=homes).collectives
  text = partitioned_program(step, args, homes)
  assert aot.count_collectives(text) == expected
  assert {"all-gather", "all-reduce"} <= set(expected)


@pytest.mark.slow
def test_collectives_are_counted_where_the_compiler_prints_no_program(
  capsys, monkeypatch
):
  """As libtpu for some programs; nearly those of the program it cannot show."""
  flags = "--batch=8", "--config.mesh.fsdp=4", "--config.mesh.tensor=2"
  _, shown = planned(capsys, *flags)

  def refuse(self):
    raise jax.errors.JaxRuntimeError("UNIMPLEMENTED")

  monkeypatch.setattr(jax.stages.Compiled, "as_text", refuse)
  table, found = planned(capsys, *flags)
  sources = shown["collectives_of"], found["collectives_of"]
  assert sources == ("compiled", "partitioned")
  assert any("of the partitioner" in row for row in table)
  kinds = found["collectives"].keys()
  assert kinds == shown["collectives"].keys() and len(kinds) > 2
  for kind in kinds:
    (_, size), (_, expected) = (
      each["collectives"][kind] for each in (found, shown)
    )
    np.testing.assert_allclose(size, expected, rtol=0.02)
