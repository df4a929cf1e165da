"""A config.json of an earlier version is read with the present names.

format_1.json holds a node of every class, as format 1 wrote it.
"""

import json
import pathlib

import pytest

from ldm_jax import config, config_json, config_upgrade
from ldm_jax.errors import ConfigError
from ldm_jax.run import Run

NODES = json.loads(
  (pathlib.Path(__file__).parent / "format_1.json").read_text()
)
BATCH = {"image": [[8, 32, 32, 3], "uint8"]}


def keys(tree):
  """(class, field) of all nodes."""
  if isinstance(tree, list):
    return {pair for item in tree for pair in keys(item)}
  if not isinstance(tree, dict):
    return set()
  own = {(tree["class"], name) for name in tree}
  return own | {pair for item in tree.values() for pair in keys(item)}


@pytest.mark.parametrize("name", NODES)
def test_every_class_of_format_1_is_read(name):
  tree = config_upgrade.renamed(NODES[name])
  node = config_json.from_json(tree)
  assert type(node).__name__ == config_upgrade.CLASSES.get(name, name)
  # What is left out of the JSON has a default, which is what it meant.
  written = json.loads(json.dumps(config_json.to_json(node)))
  assert keys(tree) <= keys(written)


def test_every_renamed_class_and_field_is_tried():
  names, fields = (
    {c for c, _ in keys(list(NODES.values()))},
    config_upgrade.FIELDS,
  )
  assert set(config_upgrade.CLASSES) <= names
  tried = {field for _, field in keys(list(NODES.values()))}
  assert {old for table in fields.values() for old in table} <= tried


def write(folder, **stored):
  (folder / "config.json").write_text(json.dumps(stored))
  return str(folder)


def test_a_run_of_format_1_is_opened_and_written_anew(tmp_path):
  folder = write(tmp_path, experiment=NODES["Experiment"], batch=BATCH)
  run = Run.open(folder)
  run.write()
  stored = json.loads((tmp_path / "config.json").read_text())
  assert stored["format"] == config_upgrade.VERSION
  assert Run.open(folder) == run
  config.check_readable(run.experiment)


def test_a_run_of_a_later_format_is_refused_in_one_line(tmp_path):
  stored = {"format": 99, "experiment": NODES["Experiment"], "batch": BATCH}
  folder = write(tmp_path, **stored)
  with pytest.raises(ConfigError, match="format 99") as stop:
    Run.open(folder)
  assert "\n" not in str(stop.value)


def test_a_renamed_value_is_read():
  tree = dict(NODES["UNet"], remat="products")
  assert config_json.from_json(config_upgrade.renamed(tree)).remat == "dots"
