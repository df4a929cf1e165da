"""Levels of modules: which may import which; limits on sizes."""

import ast
import functools
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "ldm_jax"
FILES = sorted(PACKAGE.rglob("*.py"))

# A module imports from lower levels only, or from its own unit. Units that
# share a level do not import each other.
LEVELS = {
  "errors": 0,
  "files": 0.5,
  "fields": 1,
  "config_tree": 2,
  "config_files": 2,
  "config_json": 3,
  "config_help": 2,
  "config_upgrade": 1,
  "pixels": 1,
  "nn": 2,
  "diffusion": 2,
  "data": 2,
  "weights": 2,
  "runtime": 2,
  "latent_diffusion": 3,
  "measured_operators": 3,
  "evaluation.metrics": 3,
  "config": 4,
  "concat_conditioning": 4,
  "latents": 4,
  "loaded_model": 4,
  "run": 5,
  "pretrained": 6,
  "training": 7,
  "sampling": 7,
  "evaluation": 8,
  "planning": 8,
  "serving": 8,
  "cli": 9,
  "__main__": 10,
}

# What may be imported from outside, beyond the standard library.
ALLOWED = {
  "diffusion": {"jax", "numpy", "scipy", "jaxtyping"},
  "nn": {"jax", "flax", "jaxtyping"},
  "weights": {"numpy", "ml_dtypes", "safetensors", "msgpack", "jaxtyping"},
  "latent_diffusion": {"jax", "flax", "numpy", "jaxtyping"},
  "errors": set(),
  "files": {"filelock", "numpy"},
}

# The only units that may import a library.
HOMES = {
  "optax": {"runtime", "training"},
  "orbax": {"runtime"},
  "tensorboardX": {"runtime"},
  "wandb": {"runtime"},
  "trackio": {"runtime"},
  "mlflow": {"runtime"},
  "argparse": {"cli"},
  "gradio": {"serving"},
  "fastapi": {"serving"},
  "prometheus_client": {"serving"},
  "uvicorn": {"serving"},
  "plotly": {"serving"},
}

# A program that leaves the package: it is copied next to an exported sampler.
STANDALONE = PACKAGE / "sampling" / "export" / "exported_runner.py"


def module(path):
  """The dotted name of a file, below ldm_jax; "" for the package itself."""
  parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
  if parts[-1] == "__init__":
    parts.pop()
  return ".".join(parts)


MODULES = {module(path): path for path in FILES}


@functools.cache
def parsed(path):
  return ast.parse(path.read_text())


def unit(name):
  """The longest prefix of a dotted name that has a level."""
  while name and name not in LEVELS:
    name = name.rpartition(".")[0]
  return name


def imported(path, is_top_only=False):
  """(module, whether it is of ldm_jax) of everything that a file imports."""
  tree = parsed(path)
  for node in tree.body if is_top_only else ast.walk(tree):
    if isinstance(node, ast.Import):
      yield from ((alias.name, False) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path} has a relative import"
      if node.module.split(".")[0] != "ldm_jax":
        yield node.module, False
        continue
      inside = node.module.removeprefix("ldm_jax").strip(".")
      for alias in node.names:
        full = f"{inside}.{alias.name}".strip(".")
        yield (full if full in MODULES else inside), True


def edges():
  return {
    name: {n for n, is_ours in imported(path) if is_ours and n != name}
    for name, path in MODULES.items()
  }


def test_every_module_has_a_level():
  assert not [name for name in MODULES if name and not unit(name)]


def test_imports_go_down():
  wrong = [
    f"{name} imports {other}"
    for name, others in edges().items()
    for other in others
    if name
    and other
    and unit(name) != unit(other)
    and LEVELS[unit(name)] <= LEVELS[unit(other)]
  ]
  assert not wrong, "\n".join(wrong)


def test_no_import_is_circular_even_inside_a_folder():
  graph, state, circles = edges(), {}, []

  def visit(name, path):
    state[name] = "open"
    for other in sorted(graph[name]):
      if state.get(other) == "open":
        circles.append(" -> ".join([*path[path.index(other) :], other]))
      elif other not in state:
        visit(other, [*path, other])
    state[name] = "closed"

  for name in graph:
    if name and name not in state:
      visit(name, [name])
  assert not circles, "\n".join(circles)


def test_the_package_imports_nothing_early():
  found = [n for n, _ in imported(MODULES[""], is_top_only=True)]
  assert set(found) <= {"importlib"}


@pytest.mark.parametrize("name", ALLOWED)
def test_units_import_only_their_libraries(name):
  for other, path in MODULES.items():
    if unit(other) != name:
      continue
    outside = {n.split(".")[0] for n, is_ours in imported(path) if not is_ours}
    assert outside - ALLOWED[name] <= sys.stdlib_module_names, path


@pytest.mark.parametrize("library, homes", HOMES.items(), ids=list(HOMES))
def test_libraries_stay_in_their_units(library, homes):
  for name, path in MODULES.items():
    if path == STANDALONE:
      continue
    found = {n.split(".")[0] for n, is_ours in imported(path) if not is_ours}
    assert library not in found or unit(name).split(".")[0] in homes, path


@pytest.mark.parametrize("name", ["data", "weights"])
def test_no_jax_in(name):
  for other, path in MODULES.items():
    if unit(other) == name:
      found = {n.split(".")[0] for n, is_ours in imported(path) if not is_ours}
      assert "jax" not in found, path


def test_flags_printing_and_exits_stay_in_cli():
  for name, path in MODULES.items():
    if unit(name) in ("cli", "__main__") or path == STANDALONE:
      continue
    text = path.read_text()
    assert "Namespace" not in text, path
    for node in ast.walk(parsed(path)):
      if not isinstance(node, ast.Call):
        continue
      call = ast.unparse(node.func)
      assert call not in ("print", "sys.exit", "exit"), f"{path}: {call}"


def test_meshes_are_made_in_one_place():
  for path in FILES:
    text = path.read_text()
    is_home = path.name == "sharding.py"
    assert is_home or "PartitionSpec" not in text, path
    assert "jax._src" not in text, path


def test_files_functions_and_folders_are_small():
  for path in FILES:
    assert path.read_text().count("\n") <= 300, f"{path} is over 300 lines"
    for node in ast.walk(parsed(path)):
      if isinstance(node, ast.FunctionDef):
        size = node.end_lineno - node.lineno + 1
        assert size <= 60, f"{path}: {node.name} has {size} lines"
  for folder in {path.parent for path in FILES}:
    count = len([p for p in folder.glob("*.py") if p.name != "__init__.py"])
    assert count <= 16, f"{folder} has {count} files"


def test_a_name_of_a_module_is_assigned_once():
  """A second value replaces the first for functions above it, too.

  A value that is made of the first may follow it.
  """
  for path in [*FILES, *sorted((ROOT / "tests").glob("*.py"))]:
    seen = set()
    for node in parsed(path).body:
      if isinstance(node, ast.Assign):
        names = {each.id for each in node.targets if isinstance(each, ast.Name)}
        used = {n.id for n in ast.walk(node.value) if isinstance(n, ast.Name)}
        again = (names - used) & seen
        assert not again, f"{path}: {again} are assigned twice"
        seen |= names


def test_file_names_are_subjects():
  catch_all = {"utils", "util", "common", "helpers", "misc", "base", "types"}
  assert not [path for path in FILES if path.stem in catch_all]


def test_commands_are_thin():
  sizes = {
    p: p.read_text().count("\n") for p in (PACKAGE / "cli").rglob("*.py")
  }
  assert max(sizes.values()) <= 120, max(sizes, key=sizes.get)
  assert sum(sizes.values()) < 2000


def test_public_functions_have_docstrings():
  for path in FILES:
    assert ast.get_docstring(parsed(path)), f"{path} has no docstring"
    for node in parsed(path).body:
      if isinstance(node, ast.FunctionDef | ast.ClassDef):
        is_public = not node.name.startswith("_")
        assert not is_public or ast.get_docstring(node), f"{path}: {node.name}"


@pytest.mark.parametrize("name", ["train", "sample"])
def test_help_needs_no_heavy_library(name):
  """--help must be fast, so it may not import jax."""
  code = (
    f"import sys; from ldm_jax.cli.{name} import parser\n"
    "try: parser().parse_args(['--help'])\n"
    "except SystemExit as stop: assert not stop.code\n"
    "heavy = {'jax', 'flax', 'transformers', 'optax', 'orbax', 'numpy'}\n"
    "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  assert "--" in done.stdout
