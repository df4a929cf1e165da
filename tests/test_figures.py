"""The figures of docs/ are made by their code."""

import os
import subprocess
import sys

import pytest
from documentation import DOCS, ROOT

FIGURES = DOCS / "figures"
# A run is needed for two_stages.py.
NAMES = ("compression", "schedules", "guidance", "sampler_tables", "bottleneck")


def test_every_figure_has_its_code():
  images = {path.stem for path in FIGURES.glob("*.png")}
  assert images == {*NAMES, "two_stages"}
  assert all((FIGURES / f"{name}.py").exists() for name in images)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_figure_is_made(name, tmp_path):
  pytest.importorskip("matplotlib")
  subprocess.run(
    [sys.executable, str(FIGURES / f"{name}.py"), str(tmp_path)],
    check=True,
    env=os.environ | {"PYTHONPATH": str(ROOT)},
  )
  assert (tmp_path / f"{name}.png").stat().st_size > 5000
