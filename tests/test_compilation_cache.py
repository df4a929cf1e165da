"""Compiled programs are kept in the user's cache folder, or nowhere."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from ldm_jax.cli.flags import cache_flag
from ldm_jax.cli.flags.parser import Parser
from ldm_jax.runtime import compilation_cache

COMPILE = """
import json, sys
import jax
from ldm_jax.runtime.compilation_cache import use_compilation_cache
folder = use_compilation_cache()
jax.jit(lambda x: x * 3 + 1)(2.0)
print(json.dumps([folder, jax.config.jax_compilation_cache_max_size]))
"""


def compile_in(environment):
  """What another process that compiles prints, with these variables."""
  names = ("JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE")
  kept = {name: v for name, v in os.environ.items() if name not in names}
  done = subprocess.run(
    [sys.executable, "-c", COMPILE],
    env=kept | environment,
    capture_output=True,
    text=True,
    check=True,
  )
  return json.loads(done.stdout)


def programs(folder):
  return {path.name for path in pathlib.Path(folder).glob("*-cache")}


def test_a_second_process_compiles_nothing(tmp_path):
  """The programs of the first are there, and no other is written."""
  variables = {"XDG_CACHE_HOME": str(tmp_path)}
  folder, size = compile_in(variables)
  assert pathlib.Path(folder).parent == tmp_path / "ldm_jax" / "programs"
  assert size == compilation_cache.MOST_BYTES // 2
  first = programs(folder)
  assert first
  stamps = {name: (tmp_path / folder / name).stat().st_mtime for name in first}
  assert compile_in(variables)[0] == folder
  assert programs(folder) == first
  assert stamps == {
    name: (tmp_path / folder / name).stat().st_mtime for name in first
  }


def test_a_configured_folder_stays(tmp_path):
  mine = str(tmp_path / "mine")
  found = compile_in({"JAX_COMPILATION_CACHE_DIR": mine})
  assert found == [mine, -1]
  off = {"JAX_ENABLE_COMPILATION_CACHE": "0", "XDG_CACHE_HOME": str(tmp_path)}
  assert compile_in(off)[0] is None
  assert not (tmp_path / "ldm_jax").exists()


def test_where_nothing_can_be_written_nothing_is_cached(tmp_path):
  (tmp_path / "file").write_text("")
  assert compile_in({"XDG_CACHE_HOME": str(tmp_path / "file")})[0] is None


@pytest.mark.parametrize("is_used", [True, False])
def test_the_flag_is_obeyed(monkeypatch, is_used):
  calls = []
  monkeypatch.setattr(
    compilation_cache, "use_compilation_cache", lambda: calls.append(1)
  )
  parser = Parser("x", "y")
  cache_flag.add_cache_flag(parser)
  flags, _ = parser.read([] if is_used else ["--no-cache"])
  cache_flag.use_cache(flags)
  assert len(calls) == is_used
  assert "no_cache" not in vars(flags)
