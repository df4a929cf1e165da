"""The names of `ldm_jax` exist, are documented, and are imported when used."""

import inspect
import subprocess
import sys

import pytest

import ldm_jax


@pytest.mark.parametrize("name", ldm_jax.__all__)
def test_every_public_name_is_documented(name):
  found = getattr(ldm_jax, name)
  assert found.__module__.startswith("ldm_jax.")
  assert len(inspect.getdoc(found)) > 20
  assert name in dir(ldm_jax)


def test_an_unknown_name_is_an_attribute_error():
  with pytest.raises(AttributeError, match="no attribute 'Pipelines'"):
    ldm_jax.Pipelines  # noqa: B018


def test_the_package_itself_imports_nothing_heavy():
  code = (
    "import sys, ldm_jax\n"
    "heavy = {'jax', 'numpy', 'flax', 'PIL', 'transformers', 'tokenizers'}\n"
    "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
  )
  subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
  "name", [n for n in ldm_jax.__all__ if n.endswith("Request")]
)
def test_every_field_of_a_request_is_documented(name):
  kind = getattr(ldm_jax, name)
  text = inspect.getdoc(kind)
  missing = [
    field
    for field in kind.__dataclass_fields__
    if not field.startswith("_") and field not in text
  ]
  assert not missing, missing
