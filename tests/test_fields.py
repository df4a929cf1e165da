"""What a config accepts can be read again; the rest is refused by its path."""

import copy
import dataclasses
import functools
import json
import math
import pathlib

import numpy as np
import pytest
from jax.typing import DTypeLike

from ldm_jax import config, config_json
from ldm_jax.cli import train
from ldm_jax.cli.exit_codes import CommandError
from ldm_jax.config import Data, Reports
from ldm_jax.data.glyphs.source import Glyphs
from ldm_jax.errors import ConfigError
from ldm_jax.fields import checks
from ldm_jax.fields.limits import INT_MAX
from ldm_jax.nn.autoencoder import ConvStack
from ldm_jax.nn.transformer import AttentionPlan
from ldm_jax.nn.unet import UNet
from ldm_jax.run import Run

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"
FILES = [
  path
  for path in sorted(CONFIGS.rglob("*.py"))
  if "def get_config()" in path.read_text()
]
WRONG = (
  *(None, True, "x", b"x", "", 1e5, 1.5, -1, -1.0, 0, 0.0, 10**20, INT_MAX + 1),
  *(math.nan, math.inf, -math.inf, 1j, np.float32(1), np.int64(1)),
  *([], [1], (), (1.5,), ("x",), (None,), ((1, 2),), {}, {"a": 1}, object()),
  *(Reports(), Reports, (Reports(),), lambda: 0, np.ones(2)),
)


@functools.cache
def experiments():
  return tuple(config.load(str(path)) for path in FILES)


def nodes(node, path):
  """The nodes of a tree, each with its dotted path."""
  yield node, path
  for field in checks.fields(node):
    value, here = getattr(node, field.name), f"{path}.{field.name}"
    items = enumerate(value) if isinstance(value, tuple) else [("", value)]
    for i, item in items:
      if checks.is_node(item):
        yield from nodes(item, f"{here}.{i}".removesuffix("."))


def changed(node, name, value):
  """A copy with a field set as no constructor would."""
  new = copy.copy(node)
  object.__setattr__(new, name, value)
  return new


def read_again(node, field, value):
  """A field's value after it was written and read."""
  if checks.annotation(node, field) == DTypeLike:
    return np.dtype(json.loads(json.dumps(np.dtype(value).name)))
  tree = json.loads(json.dumps(config_json.to_json(value)))
  value = config_json.from_json(tree, "config", ("*",))
  return checks.check_field(type(node), field, value, "config")


def test_every_field_refuses_a_wrong_value_or_reads_it_again():
  tried, accepted = set(), 0
  for root in experiments():
    for node, path in nodes(root, "config"):
      for field in checks.fields(node):
        if (type(node), field.name) in tried:
          continue
        tried.add((type(node), field.name))
        for value in WRONG:
          here = f"{path}.{field.name}"
          try:
            checks.check_field(node, field, value, here)
          except ConfigError as error:
            assert here in str(error) and "got" in str(error)
            assert "\n" not in str(error) and len(str(error)) < 300
            continue
          assert read_again(node, field, value) == value, here
          accepted += 1
  assert len(tried) > 150 and accepted > 300, (len(tried), accepted)


# Of a field of a config, a value that once was trained with and not read.
ONCE_ACCEPTED = {
  "steps": (1e5, "config.steps: .*integer, got 100000.0; write 100000"),
  "data.batch": (64.0, "config.data.batch: .*integer, got 64.0; write 64"),
  "task.optimizer.warmup": (1e0, "optimizer.warmup: .*, got 1.0; write 1"),
  "task.optimizer.betas": ([0.9, 0.99], r"betas: .* tuple, got \[0.9, 0.99\]"),
  "task.loss.norm": ("l3", "config.task.loss.norm: .*'l1' or 'l2', got 'l3'"),
  "task.ema_decay": (np.float32(0.9), "config.task.ema_decay: .*number"),
  "perceptual": (None, "config.perceptual: needs PerceptualWeights, got None"),
  "data": (Reports(), "config.data: needs Data, got Reports"),
  "data.source": (Reports(), "config.data.source: needs Source, got Reports"),
  "task": (Reports(), "config.task: needs a dataclass with the functions init"),
  "task.model.unet": (ConvStack(), "unet: needs Backbone, got ConvStack"),
  "task.model.unet.multipliers": ([1, 2], "multipliers: .*; write a tuple"),
  "task.model.unet.groups": (0, "unet.groups: needs 1 or more, got 0"),
  "task.model.unet.dropout": (1.0, "needs from 0 to below 1, got 1.0"),
  "task.preview_guidance": (math.nan, "needs a finite number, got nan"),
  "seed": (-1, "config.seed: needs from 0 to 4294967295, got -1"),
  "data.held_out": (INT_MAX + 1, "needs 2147483647 or less, got 2147483648"),
}


def with_value(node, path, value):
  name, _, rest = path.partition(".")
  below = with_value(getattr(node, name), rest, value) if rest else value
  return changed(node, name, below)


@pytest.mark.parametrize("path", ONCE_ACCEPTED)
def test_a_config_of_a_wrong_value_is_refused_before_anything(path, tmp_path):
  value, message = ONCE_ACCEPTED[path]
  wrong = with_value(config.load("glyphs_text"), path, value)
  for enter in (config.check, config.resolve, config.check_readable):
    with pytest.raises(ConfigError, match=message):
      enter(wrong)


@pytest.mark.parametrize("path", ONCE_ACCEPTED)
def test_a_stored_config_of_a_wrong_value_is_refused(path, tmp_path):
  value, _ = ONCE_ACCEPTED[path]
  if isinstance(value, Reports | ConvStack):
    value = config_json.to_json(value)
  if isinstance(value, np.floating):
    value = "0.9"
  tree = config_json.to_json(config.load("glyphs_text"))
  *parents, name = path.split(".")
  functools.reduce(lambda at, key: at[key], parents, tree)[name] = value
  stored = {"format": 2, "experiment": tree, "batch": {"image": [[1], "uint8"]}}
  (tmp_path / "config.json").write_text(json.dumps(stored))
  if isinstance(value, list):
    assert Run.open(str(tmp_path)).experiment  # JSON has no other tuples
    return
  with pytest.raises(
    ConfigError, match=f"config.json: config.{path}: needs|In"
  ):
    Run.open(str(tmp_path))


def test_a_config_file_of_a_wrong_value_names_file_and_field(tmp_path):
  file = tmp_path / "wrong.py"
  text = (CONFIGS / "glyphs_autoencoder.py").read_text()
  text += "\nright = get_config\n\n\ndef get_config():\n  return "
  wrong = "dataclasses.replace(right(), steps=1e5)"
  file.write_text("import dataclasses\n" + text + "vars_of(right())\n")
  change = (
    "\n\ndef vars_of(experiment):\n"
    "  object.__setattr__(experiment, 'steps', 1e5)\n  return experiment\n"
  )
  (tmp_path / "glyphs_base.py").write_text(
    (CONFIGS / "glyphs_base.py").read_text()
  )
  file.write_text(file.read_text() + change)
  assert wrong
  with pytest.raises(CommandError, match=r"wrong.py: config.steps: ") as stop:
    train.main([f"--config={file}", f"--workdir={tmp_path / 'run'}"])
  assert stop.value.code == 2 and not (tmp_path / "run").exists()


def test_a_constructor_that_compares_names_the_field_of_a_wrong_type(tmp_path):
  file = tmp_path / "wrong.py"
  file.write_text(
    "import dataclasses\n\n\n@dataclasses.dataclass(frozen=True)\nclass Pair:\n"
    "  low: int\n  high: int\n\n  def __post_init__(self):\n"
    "    assert self.low < self.high\n\n\ndef get_config():\n"
    "  return Pair(1, '2')\n"
  )
  with pytest.raises(ConfigError, match=r"Pair.high: .*integer, got '2'"):
    config.load(str(file))


@pytest.mark.parametrize(
  "text, value",
  [("1e5", 100_000), ("100000.0", 100_000), ("2e3", 2000), ("3", 3)],
)
def test_a_whole_number_may_be_written_as_a_float_on_the_command_line(
  text, value
):
  base = config.load("glyphs_text")
  steps = config.override(base, {"steps": text}).steps
  assert steps == value and type(steps) is int
  levels = config.override(base, {"task.model.unet.multipliers": "1e0, 2.0"})
  assert levels.task.model.unet.multipliers == (1, 2)
  rate = config.override(base, {"task.optimizer.rate": "1"})
  assert rate.task.optimizer.rate == 1.0


@pytest.mark.parametrize("text", ["1.5", "1e400", "nan", "0", "-3", "1e10"])
def test_other_numbers_of_steps_are_refused(text):
  with pytest.raises(ConfigError, match=r"steps: .*got"):
    config.override(config.load("glyphs_text"), {"steps": text})


def test_limits_hold_at_construction():
  for make in (
    lambda: Data(Glyphs(), Glyphs(), batch=0),
    lambda: Data(Glyphs(), Glyphs(), buckets=((64, 0),)),
    lambda: Reports(every=0),
    lambda: UNet(groups=7),
    lambda: ConvStack(groups=0),
    lambda: UNet(channels=32, attention=AttentionPlan(heads=5)),
  ):
    with pytest.raises(ValueError):
      make()


def test_help_shows_the_limits(capsys):
  train.main(["--config=glyphs_text", "--help_config"])
  out = capsys.readouterr().out
  assert "--config.data.batch=128  (int, 1 or more)" in out
  assert "drop_rate=0.1  (float, from 0 to 1)" in out


def test_every_config_file_is_within_its_limits():
  assert len(experiments()) == len(FILES) > 50
  assert all(dataclasses.is_dataclass(e.task) for e in experiments())
