"""The law of the house: who may import whom, and how large a room may be."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "ldm_jax"
FILES = sorted(PACKAGE.rglob("*.py"))

GROUND = ("diffusion", "nn", "weights", "data", "runtime")
FLOORS = {
  **dict.fromkeys(GROUND, 0),
  "nodes": 0,
  "pixels": 0,
  "latent_diffusion": 1,
  "beside": 1,
  "tasks": 2,
  "evaluation": 2,
  "sampling": 2,
  "config": 3,
  "programs": 3,
  "loop": 3,
  "run": 3,
  "opened": 3,
  "hearing": 3,
  "pretrained": 3,
  "commands": 4,
}
BESIDE = {  # on one floor
  ("beside", "latent_diffusion"),
  ("loop", "programs"),
  ("run", "config"),
  ("pretrained", "config"),
  ("pretrained", "opened"),
  ("hearing", "opened"),
}

# What a room may import from outside, beside the standard library.
NETWORKS = {"jax", "flax", "optax", "numpy", "jaxtyping"}
ALLOWED = {
  "diffusion": {"jax", "numpy", "scipy", "jaxtyping"},
  "nn": {"jax", "flax", "jaxtyping"},
  "weights": {"numpy", "ml_dtypes", "safetensors", "msgpack", "jaxtyping"},
  "tasks": NETWORKS,
  "latent_diffusion": NETWORKS,
}


def room(path):
  """The room, or the file on the stairs, that a path belongs to."""
  return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path, late=True):
  """Full names of the modules a file imports."""
  tree = ast.parse(path.read_text())
  nodes = ast.walk(tree) if late else tree.body
  for node in nodes:
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path} has a relative import"
      if node.module == "ldm_jax":
        yield from (f"ldm_jax.{alias.name}" for alias in node.names)
      else:
        yield node.module


def inside(path):
  """Rooms of ours that a file imports."""
  return {
    name.split(".")[1]
    for name in imports(path)
    if name.startswith("ldm_jax.") and name.split(".")[1] in FLOORS
  }


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down(path):
  here = room(path)
  if here == "__init__":
    assert not [n for n in imports(path, late=False) if n != "importlib"]
    return
  for there in inside(path) - {here}:
    is_lower = FLOORS[there] < FLOORS[here]
    assert is_lower or (here, there) in BESIDE, f"{here} imports {there}"


@pytest.mark.parametrize("name", ALLOWED)
def test_rooms_import_only_their_libraries(name):
  for path in (p for p in FILES if room(p) == name):
    outside = {i.split(".")[0] for i in imports(path)} - {"ldm_jax"}
    assert outside - ALLOWED[name] <= sys.stdlib_module_names, path


@pytest.mark.parametrize(
  "library, rooms",
  [
    ("optax", {"runtime", "tasks"}),
    ("orbax", {"runtime"}),
    ("tensorboardX", {"runtime"}),
    ("jax", set(FLOORS) - {"data", "weights"}),
  ],
)
def test_libraries_stay_in_their_rooms(library, rooms):
  for path in FILES:
    names = {i.split(".")[0] for i in imports(path)}
    assert library not in names or room(path) in rooms, path


def test_meshes_are_made_in_one_place():
  for path in FILES:
    words = path.read_text()
    is_home = path.name == "sharding.py"
    assert is_home or "PartitionSpec" not in words, path
    assert "jax._src" not in words, path


def test_rooms_and_functions_are_small():
  for path in FILES:
    text = path.read_text()
    assert text.count("\n") <= 300, f"{path} is over 300 lines"
    for node in ast.walk(ast.parse(text)):
      if isinstance(node, ast.FunctionDef):
        size = node.end_lineno - node.lineno + 1
        assert size <= 60, f"{path}: {node.name} has {size} lines"
  stairs = (PACKAGE / "latent_diffusion.py").read_text()
  assert stairs.count("\n") <= 200


def test_public_functions_say_what_they_do():
  for path in FILES:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), f"{path} has no docstring"
    for node in tree.body:
      if not isinstance(node, ast.FunctionDef | ast.ClassDef):
        continue
      if not node.name.startswith("_"):
        assert ast.get_docstring(node), f"{path}: {node.name}"


@pytest.mark.parametrize("script", ["train.py", "sample.py"])
def test_help_needs_no_heavy_library(script):
  """--help must answer at once, so it may not bring jax with it."""
  code = (
    f"import sys, runpy; sys.argv = ['{script}', '--help']\n"
    "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
    "except SystemExit as stop: assert not stop.code\n"
    "heavy = {'jax', 'flax', 'transformers', 'grain', 'orbax'}\n"
    "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  assert "--" in done.stdout
