"""The notebooks are those of their Python files, small, and run."""

import importlib.util
import json
import shutil

import pytest
import small_models
from documentation import DOCS, ROOT

FOLDER = DOCS / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))


def maker():
  """docs/notebooks/make.py as a module."""
  spec = importlib.util.spec_from_file_location("make", FOLDER / "make.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def test_every_notebook_has_its_python_file():
  pytest.importorskip("nbclient")
  sources = {path.stem for path in FOLDER.glob("*.py")} - {"make"}
  assert set(NAMES) == sources == set(maker().NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_that_of_its_python_file(name):
  pytest.importorskip("nbclient")
  path = FOLDER / f"{name}.ipynb"
  stored = json.loads(path.read_text())
  made = maker().notebook(name)
  text = lambda cell: "".join(cell["source"])
  assert [text(cell) for cell in stored["cells"]] == [
    cell.source for cell in made.cells
  ], "run docs/notebooks/make.py"
  assert path.stat().st_size < 40_000


@pytest.fixture(scope="module")
def models(tmp_path_factory):
  return small_models.write(tmp_path_factory.mktemp("models"))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs(name, models, tmp_path, monkeypatch):
  """Every cell, on small models; its assertions hold."""
  pytest.importorskip("nbclient")
  pytest.importorskip("ipykernel")
  monkeypatch.setenv("PYTHONPATH", str(ROOT))
  place = shutil.copytree(models, tmp_path / "notebook")
  module = maker()
  module.run(module.notebook(name), place)
