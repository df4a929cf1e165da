"""A config is a file, or the name of one that comes with the package."""

import pathlib

import pytest

from ldm_jax import config, config_files
from ldm_jax.errors import ConfigError

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"


@pytest.mark.parametrize(
  "name", ["sd/sd1", "sd/sd1.py", "configs/sd/sd1", "configs/sd/sd1.py"]
)
def test_a_name_is_found_from_any_folder(name, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert pathlib.Path(config_files.find(name)) == CONFIGS / "sd" / "sd1.py"


def test_every_name_is_a_file():
  names = config_files.names()
  assert {"glyphs_text", "ldm/kl_f8", "sd/sdxl_base"} <= set(names)
  assert all((CONFIGS / f"{name}.py").is_file() for name in names)


def test_a_file_takes_precedence_over_a_packaged_name(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "glyphs_text.py").touch()
  assert config_files.find("glyphs_text") == "glyphs_text.py"
  assert config_files.find("glyphs_text.py") == "glyphs_text.py"


def test_a_config_without_its_ending_loads_by_name(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert config.load("glyphs_text") == config.load(
    str(CONFIGS / "glyphs_text.py")
  )


def test_an_unknown_name_suggests_the_nearest():
  with pytest.raises(
    ConfigError, match="not found: sd/sd3; did you mean sd/sd"
  ):
    config_files.find("sd/sd3")
