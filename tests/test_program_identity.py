"""Equal descriptions are of equal programs."""

import dataclasses
import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldm_jax.latent_diffusion import LatentDiffusion
from ldm_jax.nn.autoencoder import Autoencoder
from ldm_jax.nn.unet import UNet
from ldm_jax.runtime import program_identity
from ldm_jax.runtime.devices.sharding import MeshShape
from ldm_jax.runtime.program_identity import Unknown, describe, describe_tree

MODEL = LatentDiffusion(Autoencoder(), UNet(channels=32))


def test_equal_values_have_equal_descriptions():
  other = LatentDiffusion(Autoencoder(), UNet(channels=32))
  assert describe(other) == describe(MODEL)
  assert describe(MeshShape().build()) == describe(MeshShape().build())
  assert describe(np.arange(3)) == describe(np.arange(3))


@pytest.mark.parametrize(
  "one, other",
  [
    (MODEL, dataclasses.replace(MODEL, prediction="v")),
    (MODEL, dataclasses.replace(MODEL, unet=UNet(channels=64))),
    (1, 1.0),
    (1, True),
    ("1", 1),
    (("ab", "c"), ("a", "bc")),
    ((1, (2, 3)), ((1, 2), 3)),
    ([1], (1,)),
    ({"a": 1}, {"a": 2}),
    (np.float32([1, 2]), np.float32([1, 3])),
    (np.zeros(2000), np.append(np.zeros(1999), 1)),  # alike when printed
    (np.zeros(2, np.int32), np.zeros(2, np.uint32)),
    (jax.nn.relu, jax.nn.silu),
    (functools.partial(jnp.sum, axis=0), functools.partial(jnp.sum, axis=1)),
    (jax.ShapeDtypeStruct((1,), "int8"), jax.ShapeDtypeStruct((1,), "uint8")),
    (MeshShape().build(), MeshShape(data=4, fsdp=2).build()),
    (MeshShape().build(), MeshShape(data=1).build(jax.devices()[:1])),
  ],
)
def test_other_values_have_other_descriptions(one, other):
  assert describe(one) != describe(other)


def of_this_module():
  """A function of a module whose version is not known."""


@dataclasses.dataclass(frozen=True)
class OfThisModule:
  """A class of a module whose version is not known."""


@pytest.mark.parametrize(
  "value",
  [of_this_module, OfThisModule(), lambda x: x, jnp.zeros(1), object()],
)
def test_what_may_change_unseen_is_not_described(value):
  for held in (value, [value], {"a": value}, functools.partial(max, value)):
    with pytest.raises(Unknown):
      describe(held)


def test_a_tree_is_its_nodes():
  form = lambda tree: describe_tree(jax.tree.structure(tree))
  assert form({"a": 1, "b": (2, None)}) == form({"a": 3, "b": (4, None)})
  assert form({"a": 1, "b": 2}) != form({"a": 1, "c": 2})
  assert form((1, 2)) != form([1, 2])
  assert form((1, None)) != form((1, 2))


def test_settings_of_jax_count_where_they_may_change_a_program():
  before = program_identity.settings()
  with jax.default_matmul_precision("float32"):
    assert program_identity.settings() != before
  with jax.transfer_guard("allow"):
    assert program_identity.settings() == before


def test_changed_code_has_another_digest(tmp_path):
  (tmp_path / "inner").mkdir()
  (tmp_path / "inner" / "a.py").write_text("x = 1\n")
  digest = lambda: program_identity.digest_of_folder(tmp_path)
  first = digest()
  (tmp_path / "notes.txt").write_text("no code")
  assert digest() == first
  (tmp_path / "inner" / "a.py").write_text("x = 2\n")
  second = digest()
  (tmp_path / "inner" / "a.py").rename(tmp_path / "inner" / "b.py")
  assert len({first, second, digest()}) == 3


def test_the_digest_is_of_this_package():
  folder = importlib.util.find_spec("ldm_jax").submodule_search_locations[0]
  wanted = program_identity.digest_of_folder(
    program_identity.pathlib.Path(folder)
  )
  assert program_identity.source_digest() == wanted
